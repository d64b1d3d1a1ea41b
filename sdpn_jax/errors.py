"""How commands end: exit codes, one line for what the user can mend, a traceback for what we must."""

import contextlib
import errno
import functools
import inspect
import io
import logging as pylogging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags, logging

PACKAGE = str(Path(__file__).parent)
REPORT = "this is a fault of sdpn_jax: please report these lines and the command in the repository you have it from"
OK, VERDICT, USER_ERROR, CRASH = 0, 1, 2, 3  # exit codes; VERDICT: `verify` and `identify` said no
INTERRUPTED, TERMINATED = 130, 143  # as shells report a program ended by Ctrl-C and by SIGTERM
SHARED_MEMORY = "/dev/shm"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
OF_THE_SYSTEM = {  # errors of files that no program can help
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EEXIST, errno.ENODEV,
}  # fmt: skip


class UserError(Exception):
    """An error that the user can mend; the message names the culprit and the remedy."""


def one_line(text: str) -> str:
    """Shows text from wherever as one printable line: control characters and bytes that are no text are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """Shows text of several lines, each as `one_line` does: what comes from files must not steer the terminal."""
    return "\n".join(map(one_line, text.split("\n")))


def shown(text: object, most: int = 100) -> str:
    """Writes what a file says so that a message can hold it: ASCII without control characters, at most `most` long."""
    letters = str(text)[: most + 1]
    told = "".join(x if " " <= x <= "~" else x.encode("unicode_escape").decode("ascii") for x in letters)
    return told if len(told) <= most else f"{told[:most]}..."


def returns_exit_code(command: Callable) -> Callable[..., int]:
    """Makes a command return an exit code whatever happens in it.

    What the command returns (None: OK) is kept. A UserError becomes one line on stderr and USER_ERROR, any other
    exception its traceback, an invitation to report it, and CRASH.
    """

    @functools.wraps(command)
    def guarded(*args, **kwargs) -> int:
        start_log()
        try:
            with ends_on_sigterm():
                return command(*args, **kwargs) or OK
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            print("stopped by SIGTERM", file=sys.stderr)
            return TERMINATED
        except Exception as error:
            if line := fault_of_machine(error):
                print(f"error: {one_line(line)}", file=sys.stderr)
                return USER_ERROR
            traceback.print_exc()
            print(f"error: {REPORT}", file=sys.stderr)
            return CRASH

    return guarded


class Terminated(BaseException):
    """SIGTERM came: what is open is closed on the way out, as after Ctrl-C."""


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into Terminated inside the block, so that no worker and no half-written file stays behind."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


def fault_of_machine(error: BaseException) -> str | None:
    """Says in one line what to do about an error of the machine: memory, disk, a lost process; None for all others."""
    causes, cause = [], error
    while cause and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in causes:
        if line := _line_of(each):
            return line
    return None


def _line_of(error: BaseException) -> str | None:
    text = " ".join(str(error).split())
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and "emory" in text):
        return (
            f"out of memory ({text[:160] or 'of this machine'}): raise --config.microbatches, set "
            "--config.model.remat=True, lower --config.batch_size or let several devices share by --config.mesh.fsdp; "
            "a run resumes by the same command"
        )
    if (isinstance(error, OSError) and error.errno in NO_SPACE) or "No space left on device" in text:
        if SHARED_MEMORY in text or where.startswith(("/psm_", SHARED_MEMORY)):
            return (
                f"no space left in {SHARED_MEMORY}, through which reader processes pass batches: give it more (docker "
                "run --shm-size=8g), or lower --config.workers (0: threads, which need none)"
            )
        return f"{where}no space left ({text[:160]}): make room and run the same command again; complete files are kept"
    if "Worker process was terminated unexpectedly" in text:
        return (
            f"a reader process died ({text[:80]}): out of memory, or of {SHARED_MEMORY} (-7)? Lower --config.workers "
            "(0: threads of this process), or give the container more; the same command resumes"
        )
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        return f"{where}{error.strerror}"
    return None


def start_log() -> None:
    """Shows our own log from INFO on and the libraries' warnings; a second call changes nothing."""
    if not flags.FLAGS.is_parsed():  # absl would say that it logs before flags are parsed, of which there are none
        flags.FLAGS(["sdpn"])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    if _ours_or_a_warning not in handler.filters:
        handler.addFilter(_ours_or_a_warning)
    sys.unraisablehook = _without_echoes


def _without_echoes(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows what nobody can catch, but for the echoes of a failed save or restore, which is raised where we wait.

    Then TensorStore's threads find the event loop gone that they report to, and hundreds of coroutines are dropped. A
    stop that came while a callback ran, whose errors are dropped, comes again.
    """
    stop = type(unraisable.exc_value)
    if stop in (Terminated, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        if stop is Terminated:
            signal.signal(signal.SIGTERM, _end)
        again = threading.Timer(0.1, signal.raise_signal, [signal.SIGTERM if stop is Terminated else signal.SIGINT])
        again.daemon = True
        again.start()
    elif str(unraisable.exc_value) != "Event loop is closed" and not inspect.iscoroutine(unraisable.object):
        sys.__unraisablehook__(unraisable)


def _ours_or_a_warning(record: pylogging.LogRecord) -> bool:
    """Keeps libraries' chatter out of the log: Orbax alone says a dozen lines about every checkpoint.

    What fails in its threads is raised again where we wait for them: their line in the log needs no traceback.
    """
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message), ()
    if record.pathname.startswith(PACKAGE):
        return True
    record.exc_info = None
    return record.levelno >= pylogging.WARNING
