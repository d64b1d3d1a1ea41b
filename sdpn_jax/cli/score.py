"""`sdpn score`: embeddings and a trial list -> error rates, scores and plots."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def score(
    embeddings: Annotated[str, Option(help="An .npz with `ids` and `embeddings`, or a folder, from `sdpn embed`.")],
    trials: Annotated[str, Option(help="`1 enrol test`, `enrol test target`, `enrol test`, .csv, .tsv or JSON lines.")],
    output: Annotated[str, Option(help="The folder to write into; files of an earlier run are replaced.")],
    models: Annotated[
        str | None,
        Option(help="Lines `model utterance ...` or an utt2spk: models scored by their utterances' mean embedding."),
    ] = None,
    cohort: Annotated[str | None, Option(help="Embeddings of other, unlabelled speech, for normalised scores.")] = None,
    top: Annotated[int, Option(help="Of AS-norm: how many of the cohort's nearest; at most half of it.", min=2)] = 300,
    shrinkage: Annotated[
        float,
        Option(
            help="Of whitening by the cohort: 1 subtracts its mean alone, 0.1 whitens almost all.", min=0.01, max=1.0
        ),
    ] = 0.7,
    calibration: Annotated[
        str | None, Option(help="results.json of another scored list, for log-likelihood ratios.")
    ] = None,
    skip_missing: Annotated[
        bool, Option("--skip_missing", help="Leave out trials whose utterances have no embedding, and list them.")
    ] = False,
    draws: Annotated[int, Option(help="Of the bootstrap over speakers, for intervals and p-values.", min=10)] = 1000,
    report: Annotated[bool, Option("--report", help="Also write report.html, one page with all figures.")] = False,
    map: Annotated[Literal["pca", "tsne"], Option(help="Of the report: how its map is projected.")] = "pca",
) -> int:
    """Score a trial list: error rates with intervals, scores and plots.

    Writes scores.txt (`enrol test score`, in the list's order), results.json, report.md, det.png and histogram.png. Of
    a list without labels only the scores are written. --skip_missing adds skipped_trials.txt (`line enrol test`),
    --cohort mean-subtracted, whitened, S-norm and AS-norm scores.
    """
    from sdpn_jax.eval import score as scorer

    results = scorer.score(
        embeddings,
        trials,
        output,
        cohort,
        top,
        draws,
        models,
        calibration,
        with_page=report,
        projection=map,
        skip_missing=skip_missing,
        shrinkage=shrinkage,
    )
    print(scorer.summary(results, output))
    return 0
