"""`sdpn embed`: recordings -> embeddings as NumPy files."""

import dataclasses
import json as json_format
from typing import Annotated, Literal

from typer import Argument, Option

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
from sdpn_jax.errors import UserError, returns_exit_code

ENDS = {"npz": ".npz", "npy": "", "kaldi": ".ark", "parquet": ".parquet"}  # of the outputs' names


@returns_exit_code
def embed(
    recordings: Annotated[
        list[str], Argument(help="Files, folders, lists of paths, Kaldi data folders, manifests, or prepared shards.")
    ],
    output: Annotated[str, Option("--output", "-o", help="File to write; with --format=npy a folder.")],
    model: Model = PRETRAINED,
    format: Annotated[
        Literal["npz", "npy", "kaldi", "parquet"],
        Option(help="npz: all in one file; npy: embeddings.npy, ids.txt, seconds.npy; kaldi: .ark and .scp; parquet."),
    ] = "npz",
    encoder: Annotated[
        Literal["teacher", "student", "untrained", "statistics"],
        Option(help="Of a training run; statistics: mean and deviation of log-mel, which needs no model."),
    ] = "teacher",
    step: Annotated[int | None, Option(help="Checkpoint of a training run; default: the newest.")] = None,
    crops: Annotated[int, Option(help="0: whole utterances; else the mean embedding of so many crops.", min=0)] = 0,
    crop_seconds: Annotated[
        float, Option("--crop_seconds", help="Length of a crop; a shorter utterance is taken whole.", min=0.2, max=3600)
    ] = 4.0,
    task_index: Annotated[int, Option("--task_index", help="This machine's number, from 0.")] = 0,
    task_count: Annotated[int, Option("--task_count", help="Machines that share the list.")] = 1,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Write embeddings of recordings: ids, embeddings [N, D] and seconds [N].

    Recordings that cannot be used are skipped and listed. After a kill the same command goes on. When several machines
    have done their parts, the same command without --task_index and --task_count joins them.
    """
    keep_compiled_programs()
    from sdpn_jax.speaker import corpus

    base = next((output.removesuffix(end) for end in ENDS.values() if end and output.endswith(end)), output)
    path = base + ENDS[format]
    if base.endswith("/") and ENDS[format]:
        raise UserError(f"--output={output}: give the file's name, not a folder's")
    reading = reading_of(channel, max_seconds)
    written = corpus.embed_corpus(
        recordings, path, model, encoder, step, crops, crop_seconds, task_index, task_count, reading
    )
    if written is None:
        print(f"task {task_index} of {task_count}: its parts are complete in {corpus.parts_folder(path)}; when all are "
              "done, run the same command without --task_index and --task_count")  # fmt: skip
    elif json:
        print(json_format.dumps(dataclasses.asdict(written), default=str))
    else:
        if written.skipped:
            print(f"{written.skipped} recordings skipped, listed in {written.reasons}")
        for hint, count in written.hints.items():
            print(f"{hint}: {count} of {written.embeddings} recordings, whose embeddings may be worse")
        print(f"{written.embeddings} embeddings of {written.dimension} dimensions written to {written.output}")
    return 0
