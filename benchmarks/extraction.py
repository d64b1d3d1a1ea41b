"""Embeddings of whole utterances: padded batches beside one utterance after the other, and beside PyTorch.

    python benchmarks/extraction.py --input=recordings --model=runs/mine --torch
    python benchmarks/extraction.py --input=recordings --config=configs/vox2.py --crop_seconds=2 --limit=50

The plain way compiles the network for the length of each utterance: the first pass is what a user waits for, later
ones are with everything compiled. Largest cosine distance between the ways, and a recording of --long_minutes made
of the utterances. Log-mels are in memory already. Prints a table and writes <output>.
"""

import jax
import measure
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from sdpn_jax.errors import returns_exit_code
from sdpn_jax.models.network import initial_variables, network_of, sizes_of
from sdpn_jax.speaker import embedder
from sdpn_jax.speaker.corpus import FRAMES_PER_SECOND, Notes, read_features
from sdpn_jax.weights.load import load_network


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest 1 - cosine of the rows of a and b [N, D], in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.max(1 - cosines))


def one_by_one(network, variables):
    """log-mels -> embeddings [N, D], a program for each length, no padding and no mask."""
    embed = jax.jit(lambda variables, x: network.apply(variables, x, method=network.embed))
    return lambda log_mels: np.concatenate([np.asarray(embed(variables, x[None])) for x in log_mels])


def torch_one_by_one(network, variables):
    """The same with the PyTorch counterpart; on a GPU where there is one."""
    import torch
    import torch_counterpart

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_counterpart.network_with(network, jax.device_get(variables)).to(device).eval()

    def embed(log_mels):
        with torch.inference_mode():
            rows = [model.embed(torch.from_numpy(x[None]).to(device)) for x in log_mels]
        return torch.cat(rows).cpu().numpy()

    return embed


def compare(title: str, ways: dict, log_mels: list[np.ndarray]) -> dict:
    """{way: figures}: first pass, later passes, agreement with `one by one`."""
    seconds_of_audio = sum(map(len, log_mels)) / FRAMES_PER_SECOND
    works = {name: lambda embed=embed: embed(log_mels) for name, embed in ways.items()}
    first = {name: measure.timed(work) for name, work in works.items()}
    embeddings = {name: work() for name, work in works.items()}
    took = measure.interleaved(works, FLAGS.repeats)
    rows = {
        name: {
            "s first": first[name],
            "s": took[name],
            "s audio/s": seconds_of_audio / took[name],
            "ratio": took[name] / took["batched"],
            "cosine distance": cosine_distance(embeddings[name], embeddings["one by one"]),
        }
        for name in ways
    }
    lengths = len({len(x) for x in log_mels})
    measure.show(f"{title}: {len(log_mels)} of {lengths} lengths, {seconds_of_audio:.0f} s of audio", rows, 18)
    return {"audio s": seconds_of_audio, "lengths": lengths, **rows}


def main(_) -> None:
    if FLAGS.model:
        network, variables, _ = load_network(FLAGS.model)
    else:
        network = network_of(FLAGS.config.model)
        variables = initial_variables(network, 0)
    variables = jax.device_put(variables)
    log_mels = [log_mel for _, log_mel in read_features(FLAGS.input, Notes())][: FLAGS.limit]
    batched = embedder.Embedder(network)
    ways = {
        "batched": lambda log_mels: batched(variables, log_mels),
        "one by one": one_by_one(network, variables),
    }
    if FLAGS.torch:
        ways["torch, one by one"] = torch_one_by_one(network, variables)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}; {measure.machine()}; {sizes_of(network)}")
    results = {"whole utterances": compare("whole utterances", ways, log_mels)}
    frames = round(FLAGS.crop_seconds * FRAMES_PER_SECOND)
    # Lengths spread by a fifth around --crop_seconds: short recordings as they come.
    lengths = np.random.default_rng(0).integers(round(0.8 * frames), round(1.2 * frames), len(log_mels))
    short = [x[:length] for x, length in zip(log_mels, lengths, strict=True)]
    results["short"] = compare(f"around {FLAGS.crop_seconds:g} s", ways, short)

    before = measure.peak_mib()
    frames = round(60 * FLAGS.long_minutes * FRAMES_PER_SECOND)
    long = np.resize(np.concatenate(log_mels), (frames, log_mels[0].shape[1]))  # repeated as often as it takes
    took = measure.timed(lambda: batched(variables, [long]))
    row = {"s first": took, "MiB more": measure.peak_mib() - before}
    measure.show(f"one recording of {len(long) / 60 / FRAMES_PER_SECOND:.1f} minutes", {"batched": row})
    results["long"] = row
    measure.write(FLAGS.output, results)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "Audio folder, text file of paths, wav.scp, or prepared shards.", required=True)
    flags.DEFINE_string("model", None, "What SpeakerEncoder.load takes; without it an untrained network of --config.")
    config_flags.DEFINE_config_file("config", "configs/librispeech.py", "The widths of the untrained network.")
    flags.DEFINE_bool("torch", False, "Also the PyTorch counterpart.")
    flags.DEFINE_float("crop_seconds", 2.0, "Length of the short recordings.")
    flags.DEFINE_float("long_minutes", 30.0, "Length of the long recording.")
    flags.DEFINE_integer("limit", 10_000, "Utterances at most.")
    flags.DEFINE_integer("repeats", 3, "Timed passes.", 1)
    flags.DEFINE_string("output", "extraction_benchmark.json", "Where the figures go.")
    app.run(returns_exit_code(main))
