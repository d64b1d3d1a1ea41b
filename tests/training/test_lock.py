"""One run in a workdir: who holds it, who may take it, and when."""

import json
import subprocess
import sys
import threading

import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.training import lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "SILENCE_S": 0.5, "SETTLE_S": 0.01}.items():
        monkeypatch.setattr(lock, name, seconds)


def test_the_second_is_refused_and_the_third_may(tmp_path):
    with lock.of(tmp_path), pytest.raises(UserError, match="is in use by process"), lock.of(tmp_path):
        pass
    with lock.of(tmp_path) as held:
        held.check()
    assert not (tmp_path / lock.NAME).exists()


def test_a_killed_owner_on_this_host_holds_nothing(tmp_path):
    code = f"from sdpn_jax.training import lock; import os; lock.Lock(__import__('pathlib').Path({str(tmp_path)!r}) / "
    code += "'run.lock').take(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / lock.NAME).exists()
    with lock.of(tmp_path) as held:
        held.check()


def other_host(beat: int) -> str:
    return json.dumps({"token": "theirs", "beat": beat, "host": "elsewhere", "process": 1, "started": "then"})


def test_a_silent_owner_elsewhere_is_dead_and_one_that_beats_is_not(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text(other_host(1))
    with lock.of(tmp_path):
        pass
    path.write_text(other_host(1))
    beating = threading.Timer(0.2, lambda: path.write_text(other_host(2)))
    beating.start()
    with pytest.raises(UserError, match="process 1 on elsewhere"), lock.of(tmp_path):
        pass
    beating.join()


def test_a_number_given_again_is_not_its_old_owner(tmp_path):
    """A process of the same number that started at another time, as after a restart of a container."""
    mine = {**lock.this_process(), "token": "old", "started": "long ago"}
    (tmp_path / lock.NAME).write_text(json.dumps(mine))
    with lock.of(tmp_path):
        pass


def test_who_lost_the_lock_is_told_and_leaves_it(tmp_path):
    with lock.of(tmp_path) as held:
        (tmp_path / lock.NAME).write_text(other_host(1))
        with pytest.raises(UserError, match="taken over by process 1 on elsewhere"):
            held.check()
    assert json.loads((tmp_path / lock.NAME).read_text())["token"] == "theirs"


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_a_damaged_lock_is_of_nobody_who_lives(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.of(tmp_path) as held:
        held.check()


def test_of_two_that_begin_together_one_holds(tmp_path, monkeypatch):
    with lock.of(tmp_path):
        late = lock.Lock(tmp_path / lock.NAME)
        read, looks = late._read, iter([None])  # it has looked before the first one wrote
        monkeypatch.setattr(late, "_read", lambda: next(looks, read()))
        with pytest.raises(UserError, match="is in use by process"):
            late.take()
