"""How a command runs: its log, and how it ends when the user's input is wrong, with one clear line and no traceback."""

import logging as pylogging
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

PACKAGE = str(Path(__file__).parent)


class UserError(Exception):
    """Something that the user can mend; the message names the culprit and the remedy."""


def run(main: Callable, takes_files: bool = False) -> None:
    """Runs an absl command; a UserError, in `main` or in the flags, becomes one line on stderr and exit code 2.

    `main` gets what absl gives: the command's name and, where it `takes_files`, the arguments that are no flags.
    """

    def guarded(argv):
        if len(argv) > 1 and not takes_files:
            fail(f"unexpected argument {argv[1]!r}; every setting is a --flag (see --help)")
        try:
            return main(argv)
        except UserError as error:
            fail(error)

    flags.FLAGS.set_default("verbosity", logging.INFO)
    logging.get_absl_handler().addFilter(_ours_or_a_warning)
    app.run(guarded, flags_parser=_parse_flags)


def _ours_or_a_warning(record: pylogging.LogRecord) -> bool:
    """Keeps libraries' chatter out of the log: Orbax alone says a dozen lines about every checkpoint."""
    return record.levelno >= pylogging.WARNING or record.pathname.startswith(PACKAGE)


def fail(message) -> None:
    """Prints `error: message` on stderr and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's own parsing, with the many exceptions of --config (a bad field, file or value) turned into one line."""
    if any(arg in ("--help", "-h", "-?", "--helpfull", "--helpshort") for arg in argv):
        return app.parse_flags_with_usage(argv)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as error:
        # ml_collections' KeyError for an unknown field says only its name and perhaps a similar one.
        text = f"the config has no field {error.args[0]}" if isinstance(error, KeyError) else str(error)
        fail(f"{'; '.join(text.split(chr(10)))} (see --help)")
