"""`sdpn prepare`: recordings -> shards for training."""

import os
from typing import Annotated, Literal

from typer import Option

from sdpn_jax.cli.options import MAX_SECONDS, Channel, MaxSeconds, reading_of
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def prepare(
    input: Annotated[
        str, Option(help="Folder of audio, list of paths, Kaldi data folder or wav.scp, or manifest (NeMo, Lhotse).")
    ],
    output: Annotated[str, Option(help="Folder for the shards.")],
    noise: Annotated[str | None, Option(help="Folder of noise (MUSAN, or any); default: coloured noise.")] = None,
    rirs: Annotated[str | None, Option(help="Folder of room responses (RIRS_NOISES); default: synthetic.")] = None,
    augmentations: Annotated[int, Option(help="Augmented versions of an utterance beside the clean one.", min=0)] = 4,
    distortions: Annotated[
        str,
        Option(help="Of the augmented versions, by comma: equaliser, clipping, band, codec, loss, gain; or all, none."),
    ] = "none",
    store: Annotated[
        Literal["log_mel", "waveform"],
        Option(help="Features, clean and augmented; or samples, to be augmented on the accelerator."),
    ] = "log_mel",
    labels: Annotated[
        str, Option(help="Lines `utterance label` (utt2spk), or folders: an id's first folder; for task=classify.")
    ] = "",
    seed: Annotated[int, Option(help="Of the augmentation.", min=0)] = 0,
    workers: Annotated[int, Option(help="Processes; 0: one for each core.", min=0)] = 0,
    task_index: Annotated[
        int | None, Option("--task_index", help="This machine's number, from 0; default: SLURM's or Kubernetes'.")
    ] = None,
    task_count: Annotated[int | None, Option("--task_count", help="Machines that share the work.")] = None,
    finish: Annotated[
        bool, Option("--finish", help="Only check that all shards are there, and write metadata.json.")
    ] = False,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    dry_run: Annotated[bool, Option("--dry_run", help="Only say what to expect: hours, size, time.")] = False,
) -> int:
    """Turn recordings into shards for training: features, clean and augmented, or waveforms.

    VoxCeleb1: --input=voxceleb1/wav. VoxCeleb2: --input=voxceleb2/dev/aac. LibriSpeech:
    --input=LibriSpeech/train-clean-100.

    After a kill the same command goes on. On several machines give each --task_index and --task_count, then run once
    with --finish.
    """
    from sdpn_jax.data import channels, estimate, recordings
    from sdpn_jax.data import prepare as preparation

    reading = reading_of(channel, max_seconds)
    kinds = {"all": list(channels.SHARES), "none": []}.get(distortions, distortions.split(","))
    if dry_run:
        recipe = preparation.make_recipe(noise, rirs, augmentations, seed, store, reading, kinds)
        print(estimate.estimate(recordings.find_utterances(input), recipe, workers))
        return 0
    index, count = task_index, task_count
    if index is None:
        index, count = (0, count or 1) if finish else preparation.task_from_environment(os.environ, count)
    count = 1 if count is None else count
    metadata = preparation.prepare(
        input, output, noise, rirs, augmentations, seed, workers, store, index, count, finish, reading, kinds, labels
    )
    if metadata is None:
        print(f"task {index} of {count}: its shards are complete in {output}; when all tasks are done, run the same "
              "command once with --finish")  # fmt: skip
    else:
        print(preparation.describe(metadata, output))
    return 0
