"""How commands end: one line for errors of the machine, a traceback for ours, and no orphans."""

import errno
import os
import signal
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from sdpn_jax import errors


@pytest.mark.parametrize(
    "error, words",
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "microbatches"),
        (MemoryError(), "microbatches"),
        (OSError(errno.ENOSPC, "No space left on device", "x.npz"), "x.npz: no space left"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: No space left on device]"),
            "no space",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/psm_1234"), "--shm-size"),
        (RuntimeError("Worker process was terminated unexpectedly with exit code -9."), "a reader process died"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), "x/y: Not a directory"),
    ],
)
def test_errors_of_the_machine_get_one_line(error, words, capsys):
    @errors.returns_exit_code
    def command():
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("wrapped") from cause

    assert command() == errors.USER_ERROR
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_our_own_errors_keep_their_traceback(capsys):
    @errors.returns_exit_code
    def command():
        return {}["missing"]

    assert command() == errors.CRASH
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_closes_what_is_open(capsys):
    closed = []

    @errors.returns_exit_code
    def command():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            closed.append(True)

    assert command() == 143
    assert closed == [True]
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_echoes_of_a_failed_save_are_not_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    monkeypatch.setattr(sys, "unraisablehook", None)
    errors.start_log()

    async def dropped():
        pass

    coroutine = dropped()
    kinds = [("Event loop is closed", None), ("index", coroutine), ("another", None)]
    echo, of_restore, other = (SimpleNamespace(exc_value=RuntimeError(words), object=of) for words, of in kinds)
    for unraisable in (echo, of_restore, other):
        sys.unraisablehook(unraisable)
    coroutine.close()
    assert shown == [other]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, errors.TERMINATED), (signal.SIGINT, errors.INTERRUPTED)])
def test_a_stop_that_falls_into_a_callback_is_not_lost(number, code):
    """Errors of callbacks of the garbage collector are dropped, and with them the exception of a signal."""

    class Noisy:
        def __del__(self):
            signal.raise_signal(number)

    @errors.returns_exit_code
    def command():
        Noisy()
        time.sleep(5)

    assert command() == code


def test_what_a_file_says_fits_in_a_message():
    assert errors.shown("plain 'text' \\ 3") == "plain 'text' \\ 3"
    assert errors.shown("a\x1b[31m\r\n\u202eé\ud800") == "a\\x1b[31m\\r\\n\\u202e\\xe9\\ud800"
    assert errors.shown("\0" * 10**6) == "\\x00" * 25 + "..."
    assert errors.shown(errors.shown("\n")) == "\\n"
