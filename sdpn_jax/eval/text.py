"""Text from files that others wrote: reading it, and showing it where it can do no harm."""

import os

from sdpn_jax import storage
from sdpn_jax.errors import UserError

LONGEST = 100  # characters that a message shows of one piece of a file


def read_text(path: str | os.PathLike, what: str, errors: str = "strict") -> str:
    """Reads a file of UTF-8, with or without a byte order mark; UserError if it cannot be read or is none.

    errors: "surrogateescape" keeps bytes that are no UTF-8 as they are.
    """
    try:
        text = storage.read_bytes(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors)
    except UnicodeDecodeError:
        raise UserError(f"{path}: the {what} is not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror})") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: a NUL byte: the {what} is not a text file in UTF-8 (or damaged)")
    return text


def quoted(text: object) -> str:
    """Quotes a text for a message: ASCII of at most LONGEST characters, everything else escaped."""
    quoted = ascii(str(text)[: LONGEST + 1])
    return quoted if len(quoted) <= LONGEST else f"{quoted[: LONGEST - 4]}...{quoted[0]}"
