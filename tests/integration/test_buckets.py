"""A run wholly in a bucket: killed, resumed, exported; where a local store is installed."""

import importlib.util
import json
import os
import signal
import subprocess

import bucket
import numpy as np
import pytest
from commands import command_of
from small_run import arguments_of, make_workplace, rows_of, train

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "flask")), reason="needs moto[server] and s3fs"
)
def test_a_run_in_a_bucket_is_the_run_on_a_disk(tmp_path):
    place = make_workplace(tmp_path)
    train(place, place / "disk")
    with bucket.server() as found:
        environment = {**os.environ, **found, "SDPN_JAX_CACHE": str(tmp_path / "cache")}

        def run(*arguments, kill_at=None):
            process = subprocess.Popen(
                command_of(*arguments), env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            said = []
            for line in process.stderr:
                said.append(line)
                if kill_at and kill_at in line:
                    process.kill()
            assert process.wait() == (-signal.SIGKILL if kill_at else 0), "".join(said[-20:])
            return "".join(said)

        audio, shards = tmp_path / "audio", "s3://bucket/shards"
        run("prepare", f"--input={audio}", f"--output={shards}", "--augmentations=2", "--workers=1")
        arguments = [*arguments_of(place, "s3://bucket/run"), f"--config.data_dir={shards}"]
        run("train", *arguments, kill_at="step 12/20")
        assert "resumed from the checkpoint of step" in run("train", *arguments)
        run("export", "--model=s3://bucket/run", "--output=s3://bucket/model")
        run("export", f"--model={place / 'disk'}", f"--output={tmp_path / 'model'}")
        run("embed", str(audio), "--model=s3://bucket/model", f"--output={tmp_path / 'a.npz'}")
        run("embed", str(audio), f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'b.npz'}")
        code = f"import s3fs; s3fs.S3FileSystem().get('bucket/run/', {str(tmp_path / 'run')!r} + '/', recursive=True)"
        subprocess.run([command_of()[0], "-c", code], env=environment, check=True)
    assert rows_of(tmp_path / "run") == rows_of(place / "disk")
    assert json.loads((tmp_path / "run" / "history.json").read_text())[0]["step"] == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["embeddings"], b["embeddings"])
