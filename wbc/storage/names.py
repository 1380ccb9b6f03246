"""A path becomes a file name that every file system and every reader of a folder takes; a folder has one address."""

import hashlib
import os
import re

from upath import UPath

from wbc.storage.atomic import local_path

MAX_NAME_BYTES = 180
_PASSWORD = re.compile(r"//[^/@:]*:[^/@]*@")


def safe_name(path: str) -> str:
    """A relative path as one file name of at most 180 bytes; no two paths share a name.

    ASCII letters and digits, `-_. ` and letters and digits of other scripts stay, all else is percent-encoded as
    UTF-8, and so are a leading `.`, `_` or space (Parquet readers pass over such files) and a trailing `.` or space.
    A name that would be too long ends in `~` and 16 hexadecimal digits of its SHA-256; `~` occurs nowhere else.
    Raises ValueError for an empty path.
    """
    if not path:
        raise ValueError("an empty path has no name")
    chars = [c if c.isalnum() or c in "-_. " else _percent(c) for c in path]
    if chars[0] in "._ ":
        chars[0] = _percent(chars[0])
    if chars[-1] in ". ":
        chars[-1] = _percent(chars[-1])
    name = "".join(chars)
    encoded = name.encode()
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    return encoded[: MAX_NAME_BYTES - 17].decode(errors="ignore") + "~" + hashlib.sha256(encoded).hexdigest()[:16]


def address(folder: UPath) -> str:
    """The one address of a folder: a local one's real path, by whatever links it was reached; else its URL.

    A URL's user and password are left out; the text is `encodable`.
    """
    local = local_path(folder)
    text = _PASSWORD.sub("//", str(folder).rstrip("/")) if local is None else os.path.realpath(local)
    return encodable(text)


def encodable(text: str) -> str:
    """`text` with lone surrogates, which a local name may hold and a table or JSON may not, written as `\\udcff`."""
    return text.encode(errors="backslashreplace").decode()


def _percent(char: str) -> str:
    # A local file name that is no UTF-8 reaches Python as lone surrogates.
    return "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))
