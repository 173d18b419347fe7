"""Files written whole or not at all, and pickles read without running them."""

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import restricted_pickle


class FileFormatError(ValueError):
    """A file that is damaged, of another format, or holds what must not be run."""


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at a clean end.

    Readers see the old file or the new one, whole; of a failure nothing is left.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    check_folder(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Refuse a path whose folder is missing.

    Raises:
        FileNotFoundError: it is.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def read_pickle(path):
    """The numbers, texts, arrays and containers of a pickle, of which nothing runs.

    Raises:
        FileFormatError: it is damaged or holds other things.
        FileNotFoundError: no such file.
    """
    data = Path(path).read_bytes()
    try:
        return restricted_pickle.load(io.BytesIO(data))
    except Exception as error:  # damaged files raise any type
        raise FileFormatError(
            f"{path} is no file of data that can be read safely: {one_line(error)}"
        ) from error


def one_line(value) -> str:
    """What a file gave, on one line of bounded length."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])
