"""What benchmarks/fuzz.py damages and who reads it: {target: (whole files, reader, what it may raise)}."""

import contextlib
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import torch_files
from audio_files import KINDS, written

from sdpn_jax import arrays
from sdpn_jax.data import audio, prepare, recordings, records, shards
from sdpn_jax.errors import UserError
from sdpn_jax.eval import models, score, scoring, trials
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.speaker import gallery
from sdpn_jax.weights import export, load, model_folder, sdpn_names, torch_file

Files = list[tuple[str, bytes]]
SIZES = {"channels": [8, 8, 8, 8, 8], "se_bottleneck": 8, "attention": 8, "embedding_size": 8, "hidden_size": 8,
         "projection_size": 8, "dtype": "float32", "remat": False}  # fmt: skip


def _all(folder: Path) -> Files:
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def audio_files(folder: Path) -> Files:
    """Half a second of noise in thirty kinds."""
    rng, files = np.random.default_rng(0), []
    for kind in KINDS:
        rate = 48000 if kind in ("webm", "ac3") else 16000
        written(folder / kind, rng.normal(0, 0.1, rate // 2), rate, kind)
        files.append((kind, (folder / kind).read_bytes()))
        (folder / kind).unlink()
    return files


def read_audio(path: Path) -> None:
    audio.seconds_of(path)
    waveform = audio.read_audio(path)
    assert np.isfinite(waveform).all() and waveform.dtype == np.float32
    audio.hints_of(waveform)


def list_files(folder: Path) -> Files:
    """A list of paths, a wav.scp with segments, manifests."""
    (folder / "a.wav").write_bytes(b"x")
    texts = {
        "files.txt": "a.wav\n/x/b.wav\nc d.wav\n",
        "wav.scp": "\ufeffu1 a.wav\nu2\t/x/b.wav\nu3 c d.wav\n",
        "segments": "u1-0 u1 0.0 1.5\nu1-1 u1 1.5 -1\nu2-0 u2 2 3 1\n",
        "nemo.json": '{"audio_filepath": "a.wav", "offset": 1.5, "duration": 3.0, "label": "x"}\n' * 3,
        "lhotse.jsonl": '{"id": "c", "start": 0.2, "duration": 0.5, "channel": 0, "recording": {"sources": '
        '[{"type": "file", "source": "a.wav"}]}}\n',
    }
    for name in ("wav.scp", "segments"):
        (folder / name).write_text(texts[name])
    return [(name, text.encode()) for name, text in texts.items()]


def read_list(path: Path) -> None:
    recordings.find_utterances(path.with_name("wav.scp") if path.name == "segments" else path)


def trial_files(folder: Path) -> Files:
    """Trial lists of several forms, and a list of models."""
    lines = ["a/1.wav b/2.wav", "a/1.wav a/2.wav", "c.wav b/2.wav"]
    texts = {
        "vox.txt": "".join(f"{n % 2} {line}\n" for n, line in enumerate(lines)),
        "kaldi.txt": "".join(f"{line} {('nontarget', 'target')[n % 2]}\n" for n, line in enumerate(lines)),
        "table.csv": "label,enrol,test\n1,a/1.wav,b/2.wav\n0,c.wav,b/2.wav\n",
        "plain.txt": "\n".join(lines) + "\n",
        "models.map": "m1 a/1.wav a/2.wav\nm2 b/2.wav\n",
    }
    return [(name, text.encode()) for name, text in texts.items()]


def read_trials(path: Path) -> None:
    if path.name == "models.map":
        models.read_models(path, trials.Trials(None, ["m1"], ["b/2.wav"]))
    else:
        trials.trial_rows(["a/1.wav", "a/2.wav", "b/2.wav", "c.wav"], trials.read_trials(path))


def torch_checkpoints(folder: Path) -> Files:
    """A checkpoint of the released code."""
    variables = initial_variables(network_of(SIZES), 0)
    released = sdpn_names.to_released(variables, 5)
    state = OrderedDict((f"module.{name}", np.array(array)) for name, array in released.items())
    contents = {"student": state, "teacher": state, "prototypes": np.ones((7, 8), np.float32), "epoch": 3}
    torch_files.write(folder / "a.pth", contents)
    return [("a.pth", (folder / "a.pth").read_bytes())]


def pickles(folder: Path) -> Files:
    """The pickle alone, which `read_pickle` puts into a whole archive: damage elsewhere mostly ends at a checksum."""
    contents = {"a": np.ones((2, 3), np.float32), "b": [1, (2.5, None, "x")], "c": OrderedDict()}
    torch_files.write(folder / "a.pth", contents)
    with zipfile.ZipFile(folder / "a.pth") as archive:
        return [("data.pkl", archive.read("checkpoint/data.pkl"))]


def read_pickle(path: Path) -> None:
    with zipfile.ZipFile(path.with_name("b.pth"), "w") as archive:
        archive.writestr("checkpoint/data.pkl", path.read_bytes())
        archive.writestr("checkpoint/data/0", bytes(24))
    with torch_file.opened(path.with_name("b.pth")) as contents:
        for value in contents.values():
            if isinstance(value, torch_file.Tensor):
                np.asarray(value)


def model_files(folder: Path) -> Files:
    """A model folder."""
    model_folder.write_model(folder, SIZES, jax.device_get(initial_variables(network_of(SIZES), 0)), {}, 0.5, "CC0-1.0")
    return [file for file in _all(folder) if file[0] != model_folder.CARD]


def read_model(path: Path) -> None:
    load.load_network(path.parent)


def galleries(folder: Path) -> Files:
    """Two speakers."""
    speakers = gallery.new("fingerprint")
    for name in ("Ann", "Bob"):
        speakers.enrol(name, np.random.default_rng(0).normal(size=(2, 8)))
    gallery.write(folder / "g.npz", speakers)
    return _all(folder)


def read_gallery(path: Path) -> None:
    gallery.identify(gallery.read(path, "fingerprint"), ["x"], np.ones((1, 8)), 0.5, 3)


def embedding_files(folder: Path) -> Files:
    """Embeddings as one file and as a folder's."""
    ids, embeddings = ["a.wav", "b.wav"], np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    np.savez(folder / "e.npz", ids=np.asarray(ids), embeddings=embeddings, seconds=np.ones(2))
    np.save(folder / "embeddings.npy", embeddings)
    np.save(folder / "seconds.npy", np.ones(2))
    (folder / "ids.txt").write_text("a.wav\nb.wav\n")
    return _all(folder)


def read_embeddings(path: Path) -> None:
    source = path if path.suffix == ".npz" else path.parent
    embeddings, ids = scoring.load_embeddings(source)
    scoring.load_seconds(source)
    assert len(embeddings) == len(ids)
    if path.suffix == ".npy":
        arrays.read_npy(path, "an array")


def result_files(folder: Path) -> Files:
    """What `sdpn score` says of a list."""
    row = {"eer_percent": 5.0, "calibration": [2.0, -1.0]}
    results = {"eer_percent": 5.0, "threshold_at_eer": 0.5, "trials": 100, "trials_file": "x", "ways": {"cosine": row}}
    return [("results.json", json.dumps(results).encode())]


def read_results(path: Path) -> None:
    with contextlib.suppress(UserError):
        score.read_calibration(path)
    export.read_results(path)


def shard_files(folder: Path) -> Files:
    """A folder of shards: its metadata, a shard and a record."""
    rng = np.random.default_rng(0)
    written(folder / "a.wav", rng.normal(0, 0.1, 8000), 16000, "wav")
    (folder / "list.txt").write_text("a.wav\n")
    prepare.prepare(folder / "list.txt", folder / "s", augmentations=0, workers=1)
    record = records.encode(records.Recording("a", rng.integers(-99, 99, 1000).astype(np.int16)))
    (shard,) = (folder / "s").glob("*.array_record")
    told = (folder / "s" / "metadata.json").read_bytes()
    return [("s/metadata.json", told), ("s/record", record), (f"s/{shard.name}", shard.read_bytes())]


def read_shards(path: Path) -> None:
    if path.name == "record":
        records.decode(path.read_bytes())
    else:
        if path.suffix == ".array_record":  # of the size that its metadata names
            size = json.loads(path.with_name("metadata.json").read_text())["shards"][0]["bytes"]
            path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
        opened = shards.open_shards(path.parent)
        opened.fingerprint()
        assert opened.utterances == 1
        for _ in shards.read_shard(opened.paths[0]):
            pass
        assert opened.records[0].num_samples


TARGETS = {
    "audio": (audio_files, read_audio, (audio.AudioError, UserError)),
    "lists": (list_files, read_list, UserError),
    "trials": (trial_files, read_trials, UserError),
    "torch": (torch_checkpoints, sdpn_names.read_checkpoint, UserError),
    "pickles": (pickles, read_pickle, UserError),
    "models": (model_files, read_model, UserError),
    "galleries": (galleries, read_gallery, UserError),
    "embeddings": (embedding_files, read_embeddings, UserError),
    "results": (result_files, read_results, UserError),
    "shards": (shard_files, read_shards, UserError),
}
