"""The whole road on an object store beside the same on a disk: prepare, train, kill, resume, export, embed, score.

    pip install -e '.[dev,s3]' 'moto[server]'
    python benchmarks/buckets.py

Starts moto's S3 server on this machine. Says how long each stage took, whether all results are equal, and what reading
records by range requests would cost beside reading local copies of the shards.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import bucket
from commands import command_of
from small_run import make_workplace


def run(*arguments: str, environment: dict[str, str], kill_at: str = "") -> tuple[float, str]:
    """Runs `sdpn ARGUMENTS`; with kill_at it is killed when its log first says that. Returns (seconds, its output)."""
    started = time.time()
    process = subprocess.Popen(
        command_of(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    for line in process.stdout or ():
        said.append(line)
        if kill_at and kill_at in line:
            process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code != (-signal.SIGKILL if kill_at else 0):
        raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{''.join(said[-20:])}")
    return time.time() - started, "".join(said)


def road(root: str, workplace: Path, environment: dict[str, str]) -> dict[str, float]:
    """Goes the whole road below `root`; returns the seconds of every stage."""
    config = f"--config={root}/config.py" if root.startswith("s3") else f"--config={workplace / 'config.py'}"
    train = ["train", config, f"--config.data_dir={root}/shards", f"--workdir={root}/run", "--config.num_steps=60",
             f"--config.eval.input={root}/audio", f"--config.eval.trials=('{root}/trials.txt',)",
             "--config.eval.every_steps=20"]  # fmt: skip
    model = f"--model={root}/model"
    stages = {
        "prepare": ["prepare", f"--input={root}/audio", f"--output={root}/shards", "--augmentations=2", "--workers=1"],
        "train, killed": train,
        "resume": train,
        "export": ["export", f"--model={root}/run", f"--output={root}/model"],
        "embed": ["embed", f"{root}/audio", model, f"--output={root}/embeddings.npz"],
        "score": ["score", f"--embeddings={root}/embeddings.npz", f"--trials={root}/trials.txt",
                  f"--output={root}/scores"],
    }  # fmt: skip
    seconds = {}
    for name, arguments in stages.items():
        kill_at = "step 25/60" if "killed" in name else ""
        seconds[name], said = run(*arguments, environment=environment, kill_at=kill_at)
        if name == "resume" and "resumed from the checkpoint of step" not in said:
            raise SystemExit(f"it did not resume:\n{said[-2000:]}")
    return seconds


def contents(folder: Path) -> dict[str, object]:
    """What must be equal: shards, metrics, weights, embeddings, scores; not paths, dates, pictures."""
    embeddings = np.load(folder / "embeddings.npz")
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in sorted((folder / "shards").glob("*.array_record"))
    }
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    found |= {"metrics": rows, "weights": (folder / "model" / "model.safetensors").read_bytes()}
    found |= {"scores": (folder / "scores" / "scores.txt").read_bytes(), "ids": embeddings["ids"].tolist()}
    return found | {"embeddings": embeddings["embeddings"].tobytes()}


RANGES = """
import random, sys, time, s3fs
system = s3fs.S3FileSystem()
files = [(name, system.size(name)) for name in system.find(sys.argv[1]) if name.endswith("array_record")]
started = time.time()
for number in range(int(sys.argv[2])):
    name, size = random.Random(number).choice(files)
    start = random.Random(number).randrange(max(1, size - RECORD))
    system.cat_file(name, start=start, end=min(size, start + RECORD))
print(time.time() - started)
"""
RECORD = 200_000  # bytes


def range_requests(environment: dict[str, str], shards: str, local: Path, count: int = 200) -> tuple[float, float]:
    """Seconds a record of random reads of RECORD bytes: by range requests to the store, and from local copies."""
    command = [sys.executable, "-c", RANGES.replace("RECORD", str(RECORD)), shards, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    files, rng = sorted(local.glob("*.array_record")), np.random.default_rng(0)
    started = time.time()
    for _ in range(count):
        with files[rng.integers(len(files))].open("rb") as file:
            file.read(RECORD)
    return float(done.stdout) / count, (time.time() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, bucket.server() as found:
        place = make_workplace(Path(temporary) / "local")
        shutil.rmtree(place / "shards")
        environment = {**os.environ, **found, "SDPN_JAX_CACHE": f"{temporary}/cache"}
        code = f"import s3fs; s3fs.S3FileSystem().put({str(place)!r} + '/', 's3://bucket/road/', recursive=True)"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        on_disk = road(str(place), place, environment)
        in_bucket = road("s3://bucket/road", place, environment)
        copy = Path(temporary) / "copy"
        code = f"import s3fs; s3fs.S3FileSystem().get('bucket/road/', {str(copy)!r} + '/', recursive=True)"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        ours, theirs = contents(place), contents(copy)
        equal = {name: ours[name] == theirs.get(name) for name in ours}
        by_range, local = range_requests(environment, "bucket/road/shards", place / "shards")
    print("| stage | disk, s | bucket, s |\n|---|---|---|")
    for name, seconds in on_disk.items():
        print(f"| {name} | {seconds:.1f} | {in_bucket[name]:.1f} |")
    different = [name for name, same in equal.items() if not same]
    print(f"equal: {len(equal) - len(different)} of {len(equal)}; different: {', '.join(different) or 'none'}")
    print(f"a record: {1e3 * by_range:.1f} ms by a range request, {1e3 * local:.2f} ms from a local copy")
    if args.output:
        Path(args.output).write_text(
            json.dumps({"disk": on_disk, "bucket": in_bucket, "equal": equal}, indent=2) + "\n"
        )
    if not all(equal.values()):
        sys.exit("not equal")


if __name__ == "__main__":
    main()
