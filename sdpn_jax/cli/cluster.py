"""`sdpn cluster`: embeddings -> pseudo-labels."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def cluster(
    embeddings: Annotated[str, Option(help="An .npz or a folder, from `sdpn embed`.")],
    output: Annotated[str, Option(help="The folder to write into.")],
    clusters: Annotated[
        int | None,
        Option(help="How many; default: of those tried the largest at which the silhouette has a peak.", min=2),
    ] = None,
    method: Annotated[
        Literal["kmeans", "agglomerative", "kmeans+agglomerative"] | None,
        Option(
            help="agglomerative: average linkage; kmeans+agglomerative: of the clusters of k-means.",
            show_default="kmeans, beyond 20,000 utterances kmeans+agglomerative",
        ),
    ] = None,
    centroids: Annotated[
        int | None,
        Option(help="Of k-means before average linkage.", min=2, show_default="an eighth of N, at most 50,000"),
    ] = None,
    smallest: Annotated[
        int, Option(help="Utterances that a cluster needs; those of smaller ones get no pseudo-label.", min=1)
    ] = 2,
    crops: Annotated[
        str | None, Option(help="Embeddings of crops, ids `utterance#1`: do they find their utterance's cluster?")
    ] = None,
    speakers: Annotated[str | None, Option(help="Lines `utterance speaker`: true labels, to compare with.")] = None,
    map: Annotated[Literal["pca", "tsne"], Option(help="How the map is projected.")] = "pca",
    seed: Annotated[int, Option(help="Of k-means, samples and t-SNE.", min=0, max=2**32 - 1)] = 0,
) -> int:
    """Find speakers without labels: clusters of embeddings, written as pseudo-labels."""
    from sdpn_jax import storage
    from sdpn_jax.eval import cluster as clustering

    results = clustering.cluster_file(
        embeddings, output, clusters, method, speakers, map, seed, centroids, smallest, crops
    )
    print(clustering.summary(results))
    for name in clustering.files_of(results):
        print(f"wrote {storage.place(output) / name}")
    return 0
