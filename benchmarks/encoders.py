"""Encoders of full size, untrained: time to load, memory, and speed beside PyTorch and onnxruntime on a CPU.

    python benchmarks/encoders.py --encoders=resnet34,campplus --seconds=2,10 --rows=1,16

The same weights in three files: a model folder, PyTorch's, and ONNX of features. Each way has a process of its own,
which loads its file and then embeds batches of features in turn with the others. "s load" is from the library
imported to the weights in memory, "s first" the first embedding of the first length, with all that is compiled for it.
Prints a table for each encoder and writes <output>.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import measure
import numpy as np
from absl import app, flags

from sdpn_jax.models.network import MEL_BINS, initial_variables, network_of, sizes_of
from sdpn_jax.speaker.corpus import FRAMES_PER_SECOND
from sdpn_jax.weights import model_folder, onnx_file

SIZES = {  # embeddings and widths as published, where they are not the defaults
    "ecapa": {"embedding_size": 192},
    "campplus": {"embedding_size": 512},
    "ecapa_wespeaker": {"embedding_size": 192, "width": 1024},
    "eres2netv2": {"embedding_size": 192},
    "eres2netv2_w24s4ep4": {"embedding_size": 192},
}


def written(name: str, folder: Path) -> int:
    """Draws an encoder and writes it in all forms; returns how many of its numbers learn."""
    import torch
    import torch_encoders

    network = network_of({"encoder": name, "front_end": "kaldi80", "embedding_size": 256} | SIZES.get(name, {}))
    variables = jax.device_get(initial_variables(network, 0))
    # Before training branches of residual blocks add nothing: here they add half.
    variables["params"] = jax.tree_util.tree_map_with_path(
        lambda path, x: np.maximum(x, np.float32(0.5)) if path[-1].key == "scale" else x, variables["params"]
    )
    model_folder.write_model(folder / "model", sizes_of(network), variables, {}, None, "unknown")
    onnx_file.write(folder / "model.onnx", network, variables, "features")
    torch.save(torch_encoders.state_of(network, variables), folder / "model.pt")
    return sum(array.size for array in jax.tree.leaves(variables["params"]["encoder"]))


def ours(folder: Path) -> tuple[float, Callable]:
    from sdpn_jax import SpeakerEncoder

    jax.devices()  # what a process does once, whatever it loads
    started = time.perf_counter()
    encoder = SpeakerEncoder.load(folder / "model")
    return time.perf_counter() - started, lambda batch: encoder.embed_log_mels(list(batch))


def in_torch(folder: Path) -> tuple[float, Callable]:
    import torch
    import torch_encoders

    network, _, _ = model_folder.read_model(folder / "model")
    started = time.perf_counter()
    encoder = torch_encoders.encoder_of(network)
    state = torch.load(folder / "model.pt", weights_only=True)
    encoder.load_state_dict(torch_encoders.with_counts(encoder, state))

    def embed(batch):
        with torch.inference_mode():
            return encoder(torch.from_numpy(batch)).numpy()

    return time.perf_counter() - started, embed


def in_onnxruntime(folder: Path) -> tuple[float, Callable]:
    import onnxruntime

    started = time.perf_counter()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    return time.perf_counter() - started, lambda batch: session.run(None, {given: batch})[0]


WAYS = {"ours": ours, "torch": in_torch, "onnxruntime": in_onnxruntime}


class Way:
    """What one process has loaded."""

    def __init__(self, name: str, folder: Path):
        self.seconds, self.embed = WAYS[name](folder)

    def __call__(self, batch: np.ndarray | None) -> tuple[float, np.ndarray] | dict[str, float]:
        if batch is None:
            return {"s load": self.seconds, "MiB": measure.peak_mib()}
        started = time.perf_counter()
        embeddings = self.embed(batch)
        return time.perf_counter() - started, embeddings


def agreement(embeddings: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(embeddings - reference).max() / np.abs(reference).max())


def benchmark(name: str, folder: Path) -> dict:
    """{way: its figures} of one encoder."""
    rng = np.random.default_rng(0)
    parameters = written(name, folder)
    ways = {way: measure.Elsewhere(Way, way, folder) for way in WAYS}
    batches = {
        f"{count} x {seconds} s": rng.standard_normal((count, round(seconds * FRAMES_PER_SECOND), MEL_BINS), np.float32)
        for count in map(int, FLAGS.rows)
        for seconds in map(int, FLAGS.seconds)
    }
    first = {way: work(next(iter(batches.values())))[0] for way, work in ways.items()}
    rows = {way: work(None) | {"s first": first[way]} for way, work in ways.items()}
    for title, batch in batches.items():
        reference = ways["torch"](batch)[1]
        for way, work in ways.items():
            rows[way]["difference"] = max(rows[way].get("difference", 0.0), agreement(work(batch)[1], reference))
        works = {way: functools.partial(work, batch) for way, work in ways.items()}
        took = measure.interleaved(works, FLAGS.repeats, settled=True)
        for way in ways:
            rows[way] |= {f"ms, {title}": 1000 * took[way], f"of ours, {title}": took[way] / took["ours"]}
    for work in ways.values():
        work.close()
    measure.show(f"{name}: {parameters:,} parameters", rows, 12)
    return {"parameters": parameters, **rows}


def main(_) -> None:
    print(measure.machine())
    results = {}
    for name in FLAGS.encoders:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = benchmark(name, Path(folder))
        measure.write(FLAGS.output, results)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    FLAGS = flags.FLAGS
    flags.DEFINE_list(
        "encoders", ["ecapa", "resnet34", "campplus", "ecapa_wespeaker", "eres2netv2"], "Names of config.model.encoder."
    )
    flags.DEFINE_list("seconds", ["2", "10"], "Lengths of utterances, whole seconds.")
    flags.DEFINE_list("rows", ["1", "16"], "Utterances of a batch.")
    flags.DEFINE_integer("repeats", 7, "Timed passes of each way.", 1)
    flags.DEFINE_string("output", "encoders_benchmark.json", "Where the figures go.")
    app.run(main)
