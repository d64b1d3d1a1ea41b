"""How commands end: exit codes, one line for what the user can mend, a traceback for what we must."""

import functools
import logging as pylogging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging

PACKAGE = str(Path(__file__).parent)
REPORT = "this is a fault of sdpn_jax: please report these lines and the command in the repository you have it from"
OK, VERDICT, USER_ERROR, CRASH = 0, 1, 2, 3  # exit codes; VERDICT: `verify` and `identify` said no
INTERRUPTED = 130  # as shells report a program ended by Ctrl-C


class UserError(Exception):
    """An error that the user can mend; the message names the culprit and the remedy."""


def returns_exit_code(command: Callable) -> Callable[..., int]:
    """Makes a command return an exit code whatever happens in it.

    What the command returns (None: OK) is kept. A UserError becomes one line on stderr and USER_ERROR, any other
    exception its traceback, an invitation to report it, and CRASH.
    """

    @functools.wraps(command)
    def guarded(*args, **kwargs) -> int:
        start_log()
        try:
            return command(*args, **kwargs) or OK
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except Exception:
            traceback.print_exc()
            print(f"error: {REPORT}", file=sys.stderr)
            return CRASH

    return guarded


def start_log() -> None:
    """Shows our own log from INFO on and the libraries' warnings; a second call changes nothing."""
    if not flags.FLAGS.is_parsed():  # absl would say that it logs before flags are parsed, of which there are none
        flags.FLAGS(["sdpn"])
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    if _ours_or_a_warning not in handler.filters:
        handler.addFilter(_ours_or_a_warning)


def _ours_or_a_warning(record: pylogging.LogRecord) -> bool:
    """Keeps libraries' chatter out of the log: Orbax alone says a dozen lines about every checkpoint."""
    return record.levelno >= pylogging.WARNING or record.pathname.startswith(PACKAGE)
