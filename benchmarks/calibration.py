"""What a threshold is worth on other speakers: the model's own, and those of `sdpn calibrate` with labels and without.

    python benchmarks/calibration.py --input=RECORDINGS --model=models/mine

RECORDINGS has a folder for each speaker. The speakers are divided into two halves, twenty times: one half calibrates,
all pairs of the other are judged by the detection cost of equal priors (1: no better than accepting all), and by the
cost of log-likelihood ratios in bits (1: knowing nothing). Prints a table and writes <output>.
"""

import measure
import numpy as np
from absl import app, flags

import sdpn_jax
from sdpn_jax.eval import calibration, metrics, pairs
from sdpn_jax.speaker import domain

DIVISIONS = 20


def main(_) -> None:
    whole, halves = (domain.read_parts(FLAGS.model, FLAGS.input, parts) for parts in (1, 2))
    speakers = np.unique([name.split("/")[0] for name in whole.ids], return_inverse=True)[1]
    speaker_of = dict(zip(whole.ids, speakers, strict=True))
    halved = np.array([speaker_of[name] for name in halves.ids])
    thresholds = {f"threshold {value:g}": value for value in (whole.threshold, *FLAGS.threshold)}
    rows: dict[str, list[list[float]]] = {}
    for division in range(DIVISIONS):
        order = np.random.default_rng(division).permutation(speakers.max() + 1)
        first, of_halves = (np.isin(of, order[: len(order) // 2]) for of in (speakers, halved))
        judged = pairs.trials(whole.embeddings[~first, 0], speakers[~first])
        of_first = halves.embeddings[of_halves]
        recordings = np.repeat(np.arange(len(of_first)), 2)
        fits = {
            "with labels": pairs.fit(*pairs.trials(whole.embeddings[first, 0], speakers[first]), 0.5),
            "without labels": pairs.fit(*pairs.trials(of_first.reshape(len(recordings), -1), recordings), 0.5),
        }
        found = {name: [pairs.cost(value, *judged, 0.5)] for name, value in thresholds.items()}
        for name, fit in fits.items():
            bits = calibration.cllr(fit.scale * judged[0] + fit.offset, judged[1])
            found[name] = [pairs.cost(fit.threshold(), *judged, 0.5), bits]
        found["least"] = [metrics.min_dcf(*judged, 0.5), calibration.min_cllr(*judged)]
        for name, costs in found.items():
            rows.setdefault(name, []).append(costs)
    results = {
        name: dict(zip(("detection cost", "bits"), np.mean(costs, axis=0).tolist(), strict=False))
        for name, costs in rows.items()
    }
    for name, figures in results.items():
        measure.show(name, figures)
    measure.write(FLAGS.output, results)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "Folder with a folder of recordings for each speaker.", required=True)
    flags.DEFINE_string("model", str(sdpn_jax.PRETRAINED), "Encoder; default: the one in the package.")
    flags.DEFINE_multi_float("threshold", [], "Others to judge, such as one found on other recordings.")
    flags.DEFINE_string("output", "calibration_benchmark.json", "Where the figures go.")
    app.run(main)
