"""Atomic replacement of files, and pickles read without running code."""

import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import restricted_pickle


class FileFormatError(ValueError):
    """A file that is damaged, has another format, or holds code that must not be run."""


@contextmanager
def replacing(path) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` if the block ends without an error.

    Readers see either the old file or the complete new one; a failure leaves nothing behind.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    check_folder(path)
    # The suffix stays at the end: OpenCV and Pillow choose the format by it.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_json(path, content, **options) -> None:
    """Write JSON atomically, after creating the folder; `options` are those of `json.dumps`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")


def check_folder(path: Path) -> None:
    """Check that the folder of a path exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def read_pickle(path):
    """Read a pickle of numbers, strings, arrays and containers without running code.

    Raises:
        FileFormatError: the file is damaged or holds other objects.
        FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        return restricted_pickle.load(io.BytesIO(data))
    except Exception as error:  # damaged files raise any type
        raise FileFormatError(
            f"{path} is not a data file that can be read safely: {one_line(error)}"
        ) from error


def one_line(value) -> str:
    """Format text from a file, or an error, as one printable line of bounded length."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])
