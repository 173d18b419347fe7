"""Paths that come from files of data, which must not lead out of their folder."""

import os
from pathlib import Path

from .text import one_line


def leads_out(folder, name: str) -> bool:
    """Whether `folder`/`name` lies outside `folder`: an absolute path, or one that climbs by "..".

    Symbolic links count as where they lie: whoever owns the folder made them, not the author of
    the name.
    """
    joined = os.path.abspath(os.path.join(folder, os.path.normpath(name)))
    return not Path(joined).is_relative_to(os.path.abspath(folder))


def inside(folder, name: str, where: str, remedy: str) -> Path:
    """Join a folder and a path that data names; without ".." in the latter.

    Args:
        folder: the path must lie in it; an absolute one may.
        where: the place that names the path, for the message.
        remedy: what to do about a path that leads out, for the message.

    Raises:
        ValueError: the path leads out of the folder, see `leads_out`.
    """
    if leads_out(folder, name):
        raise ValueError(
            f"{where} names {one_line(name)!r}; expected a path inside {folder}. {remedy}"
        )
    return Path(folder, os.path.normpath(name))
