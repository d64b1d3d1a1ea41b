"""Scores a trial list with exported embeddings: error rates, scores and plots.

    python -m sdpn_jax.eval.score --embeddings=runs/vox2/voxceleb1.npz --trials=veri_test2.txt --output=runs/vox2/vox1_o

writes into the output folder scores.txt (`enrol test score`, in the list's order), results.json, det.png and
histogram.png.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from sdpn_jax import errors
from sdpn_jax.eval import plots, scoring

FILES = ("scores.txt", "results.json", "det.png", "histogram.png")


def score(embeddings_path: str | Path, trials_path: str | Path, output: str | Path) -> dict:
    """Scores the trials by cosine and writes FILES into the folder `output`, which is made where needed.

    Returns what results.json holds: the keys of `scoring.evaluate`, and embeddings, trials_file, dimension. Raises
    UserError for inputs that cannot be read or do not fit together, and for an output folder that cannot be made.
    """
    trials = scoring.read_trials(trials_path)
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    scores = scoring.score_trials(embeddings, ids, trials)
    results = scoring.summarize(scores, trials.labels)
    results |= {"embeddings": str(embeddings_path), "trials_file": str(trials_path), "dimension": embeddings.shape[1]}

    scores_txt, results_json, det_png, histogram_png = (Path(output) / name for name in FILES)
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        _write_scores(scores_txt, trials, scores)
        results_json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        plots.plot_det({Path(trials_path).stem: (scores, trials.labels)}, det_png)
        plots.plot_score_histogram(scores, trials.labels, histogram_png)
    except OSError as error:
        raise errors.UserError(f"cannot write into --output={output} ({error.strerror})") from None
    return results


def summary(results: dict, output: str | Path) -> str:
    """The results as a short table, and where each file is."""
    rows = [
        ("trials", f"{results['trials']:,} ({results['targets']:,} target) from {results['trials_file']}"),
        ("embeddings", f"{results['dimension']}-dimensional from {results['embeddings']}"),
        ("EER", f"{results['eer_percent']:.2f} % (threshold {results['threshold_at_eer']:.4f})"),
        ("minDCF, p_target 0.01", f"{results['min_dcf_0.01']:.4f}"),
        ("minDCF, p_target 0.05", f"{results['min_dcf_0.05']:.4f}"),
        *(("wrote", str(Path(output) / name)) for name in FILES),
    ]
    return "\n".join(f"{name:<22} {value}" for name, value in rows)


def main(_) -> None:
    print(summary(score(FLAGS.embeddings, FLAGS.trials, FLAGS.output), FLAGS.output))


def _write_scores(path: Path, trials: scoring.Trials, scores: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as file:
        for enrol, test, value in zip(trials.enrol, trials.test, scores.tolist(), strict=True):
            file.write(f"{enrol} {test} {value:.8f}\n")


if __name__ == "__main__":
    # Defined here and not on import, so that other commands may import `score` and have flags of the same names.
    FLAGS = flags.FLAGS
    flags.DEFINE_string(
        "embeddings", None, "An .npz with `ids` and `embeddings`, or a folder (embeddings.npy, ids.txt)."
    )
    flags.DEFINE_string(
        "trials", None, "A trial list: `1 enrol test` (VoxCeleb) or `enrol test target` (Kaldi) a line."
    )
    flags.DEFINE_string("output", None, "The folder to write into; files of an earlier run are replaced.")
    flags.mark_flags_as_required(["embeddings", "trials", "output"])
    errors.run(main)
