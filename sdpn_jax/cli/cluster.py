"""`sdpn cluster`: embeddings -> pseudo-labels."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def cluster(
    embeddings: Annotated[str, Option(help="An .npz or a folder, from `sdpn embed`.")],
    output: Annotated[str, Option(help="The folder to write into.")],
    clusters: Annotated[
        int | None, Option(help="How many; default: of several tried the number with the highest silhouette.", min=2)
    ] = None,
    method: Annotated[
        Literal["kmeans", "agglomerative"],
        Option(help="agglomerative: average linkage, at most 20,000 utterances."),
    ] = "kmeans",
    speakers: Annotated[str | None, Option(help="Lines `utterance speaker`: true labels, to compare with.")] = None,
    map: Annotated[Literal["pca", "tsne"], Option(help="How the map is projected.")] = "pca",
    seed: Annotated[int, Option(help="Of k-means and t-SNE.")] = 0,
) -> int:
    """Find speakers without labels: clusters of embeddings, written as pseudo-labels."""
    from sdpn_jax import storage
    from sdpn_jax.eval import cluster as clustering

    results = clustering.cluster_file(embeddings, output, clusters, method, speakers, map, seed)
    print(clustering.summary(results))
    for name in clustering.FILES:
        print(f"wrote {storage.place(output) / name}")
    return 0
