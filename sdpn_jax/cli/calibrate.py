"""`sdpn calibrate`: threshold and probabilities from recordings of one's own."""

import json as json_format
from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import (
    MAX_SECONDS,
    PRETRAINED,
    Channel,
    Json,
    MaxSeconds,
    Model,
    keep_compiled_programs,
    reading_of,
)
from sdpn_jax.errors import UserError, one_line, returns_exit_code


@returns_exit_code
def calibrate(
    input: Annotated[str, Option(help="Recordings like those to be verified: folder, list, Kaldi data or manifest.")],
    model: Model = PRETRAINED,
    labels: Annotated[
        str | None, Option(help="Who speaks: 'folders' (the first folder of each), or a file of 'recording speaker'.")
    ] = None,
    output: Annotated[
        str | None,
        Option("--output", "-o", help="New model folder.", show_default="the model itself, if it is a folder"),
    ] = None,
    prior: Annotated[
        float, Option(help="Share of comparisons that will be of one speaker.", min=0.0001, max=0.9999)
    ] = 0.5,
    license: Annotated[str, Option(help="Of the weights of a new folder, an SPDX identifier.")] = "unknown",
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Find a model's threshold, and what probability a score stands for, from recordings of your own.

    A threshold from other recordings may refuse most owners of a voice. With --labels all pairs of recordings are
    trials. Without, the two halves of a recording stand for one speaker and halves of different recordings for two:
    they share microphone and room, and some speak twice, so that labels for some recordings are worth much more.
    """
    keep_compiled_programs()
    import numpy as np

    from sdpn_jax import storage
    from sdpn_jax.eval import metrics, pairs, plots
    from sdpn_jax.speaker import domain
    from sdpn_jax.weights import export, model_folder

    folder = storage.place(output or model)
    if output is None and (model == PRETRAINED or not model_folder.is_model(folder)):
        raise UserError(f"{model} is no model folder of yours: give the new one as --output")
    found = domain.read_parts(model, input, 1 if labels else 2, reading_of(channel, max_seconds))
    speakers, left_out = speakers_of(found.ids, labels) if labels else (found.ids, {})
    kept = [row for row, speaker in enumerate(speakers) if speaker is not None]
    groups = pairs.groups_of([str(speakers[row]) for row in kept for _ in range(found.embeddings.shape[1])])
    chosen = pairs.some(groups)
    embeddings = found.embeddings[kept].reshape(len(groups), -1)[chosen]
    groups = np.unique(groups[chosen], return_inverse=True)[1]

    scores, same = pairs.trials(embeddings, groups)
    calibration = pairs.fit(scores, same, prior)
    costs = pairs.held_out_costs(embeddings, groups, prior, found.threshold)
    kind = "speakers" if labels else "recordings, each taken for a speaker"
    facts = {
        "calibrated on": f"{int(same.sum())} pairs of one speaker and {int((1 - same).sum())} of two, of "
        f"{groups.max() + 1} {kind}: equal error rate {100 * metrics.eer(scores, same):.1f} %",
    }
    export.export_calibrated(model, folder, calibration, facts, license)
    plots.plot_score_histogram(scores, same, folder / "calibration.png")

    threshold = calibration.threshold()
    if json:
        print(json_format.dumps({"threshold": threshold, "before": found.threshold, "scale": calibration.scale,
                                 "offset": calibration.offset, "prior": prior, "costs": costs,
                                 "speakers": int(groups.max() + 1), "labels": bool(labels),
                                 "recordings": len(kept), "skipped": found.skipped, "left_out": left_out,
                                 "model": str(folder)}))  # fmt: skip
        return 0
    for path, reason in found.skipped:
        print(one_line(f"skipped: {path}: {reason}"))
    for name, why in left_out.items():
        if why:
            print(one_line(f"left out: {name}: {why}"))
    if unnamed := sum(not why for why in left_out.values()):
        print(f"left out: {unnamed} recordings without a speaker in {labels}")
    print(facts["calibrated on"])
    print(f"threshold {threshold:.4f}" + ("" if found.threshold is None else f" (before {found.threshold:.4f})"))
    for score in np.linspace(threshold - 0.2, threshold + 0.2, 5):
        print(f"  score {score:7.4f}: probability of one speaker {100 * calibration.probability(score):5.1f} %")
    if costs:
        told = ", ".join(f"{name} {value:.3f}" for name, value in costs.items())
        judged = "speakers" if labels else "recordings"
        print(f"detection cost on {judged} that were not fitted to (prior {prior:g}; 1: no better than chance): {told}")
    if not labels:
        print(
            "without labels this is a guess: halves of a recording share microphone and room; try pairs that you know"
        )
    for name in (model_folder.CONFIG, "calibration.png"):
        print(f"wrote {folder / name}")
    return 0


def speakers_of(ids: list[str], labels: str) -> tuple[list[str | None], dict[str, str]]:
    """Finds the speaker of each recording, None where a list does not say; UserError if it says none.

    Also returns {recording: why} of those without, which is "" where the list does not name it.
    """
    from sdpn_jax.data import labels as lists
    from sdpn_jax.eval.matching import known_of, why_unclear

    known = lists.of_folders(ids) if labels == "folders" else lists.read_labels(labels)
    speakers, faults = known_of(ids, known)
    names = list(known)
    left_out = {name: why_unclear(name, names, faults) if rows else "" for name, rows in faults.items()}
    if not any(speakers):
        raise UserError(f"{labels} names none of the {len(ids)} recordings, of which the first is {ids[0]}")
    return speakers, left_out
