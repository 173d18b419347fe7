"""Atomic replacement of files, their SHA-256, folders to write to, and errors about files."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .text import one_line

LOCK = ".lock"  # in a folder that is `reserved`


class FileFormatError(ValueError):
    """A file that is damaged, has another format, or holds code that must not be run."""


@contextmanager
def replacing(path, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` if the block ends without an error.

    Readers see either the old file or the complete new one; a failure leaves nothing behind.

    Args:
        durable: so that this holds after a loss of power as well, wait for the disk.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    check_folder(path)
    # The suffix stays at the end: OpenCV and Pillow choose the format by it.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        if durable:
            _wait_for_disk(part)
        os.replace(part, path)
        if durable:
            _wait_for_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_json(path, content, **options) -> None:
    """Write JSON atomically, after creating the folder; `options` are those of `json.dumps`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")


def sha256(file) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_folder(path: Path) -> None:
    """Check that the folder of a path exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def make_folder(folder, key: str) -> None:
    """Create a folder to write into, and its parents, if it does not exist.

    Args:
        key: what names it, for the message.

    Raises:
        OSError: it cannot be created, or not be written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it is read-only"
    except (FileExistsError, NotADirectoryError):
        reason = "it, or a part of it, is a file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise OSError(f"{key} {one_line(folder)} cannot be written to: {reason}. Give another one")


@contextmanager
def reserved(folder, what: str) -> Iterator[None]:
    """Let no other process reserve a folder inside the block, also on other machines.

    The lock is a process's own: unlike that of flock, its forked children do not inherit it.

    Args:
        what: what uses the folder, for the message.

    Raises:
        BlockingIOError: another process has reserved it.
    """
    with open(Path(folder) / LOCK, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise BlockingIOError(
                f"{folder}: another {what} writes here ({one_line(file.read()) or 'unknown'}). "
                "Wait, stop it, or name another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def naming_full_disk(folder) -> Iterator[None]:
    """Say that the disk of `folder` is full: errors of a file that is open do not name it.

    Raises:
        OSError: the disk is full, or the quota used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{error.filename or folder}: {error.strerror}. What was saved before is intact: make "
            "room, then go on with --resume"
        ) from error
