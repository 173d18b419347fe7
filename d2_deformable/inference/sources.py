"""Find images and videos: files, folders, and globs."""

import glob
from pathlib import Path

from ..data.images import is_image, visible_files

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def find_images(inputs) -> list[Path]:
    """Find image files; see `find_inputs`.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [file for file in find_inputs(inputs) if not is_video(file)]
    if not files:
        raise FileNotFoundError(f"{_shown(inputs)}: no image, only videos")
    return files


def find_inputs(inputs, but: Path | None = None) -> list[Path]:
    """Find image and video files.

    A folder is searched with its subfolders, for files with the suffix of an image or a video, in
    alphabetical order; hidden files are left out. A file that is named is taken as it is.

    Args:
        inputs: path of a file, of a folder, or a glob; or a list of these.
        but: a folder whose files are left out unless they are named, such as that of the results.

    Returns:
        paths without duplicates, in the order of `inputs`.

    Raises:
        FileNotFoundError: an input matches no file.
    """
    found = {}
    for one in _as_list(inputs):
        files = _expand(str(one), but)
        if not files:
            kinds = "no such file"
            if Path(one).is_dir():
                kinds = "no image or video in this folder, judged by suffixes such as .jpg and .mp4"
            raise FileNotFoundError(f"{one}: {kinds}")
        found.update(dict.fromkeys(files))
    if not found:
        raise FileNotFoundError("no input: give images, folders, globs or a video")
    return list(found)


def is_video(file) -> bool:
    return Path(file).suffix.lower() in VIDEOS


def _expand(one: str, but: Path | None) -> list[Path]:
    path = Path(one).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_of(path, but)
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [file for m in matches for file in (_files_of(m, but) if m.is_dir() else [m])]
    return [file for file in found if not _is_in(file, but)]


def _files_of(folder: Path, but: Path | None) -> list[Path]:
    return [
        file
        for file in visible_files(folder)
        if (is_image(file) or is_video(file)) and file.is_file() and not _is_in(file, but)
    ]


def _is_in(file: Path, folder: Path | None) -> bool:
    return folder is not None and file.resolve().is_relative_to(folder.resolve())


def _as_list(inputs) -> list:
    return [inputs] if isinstance(inputs, (str, Path)) else list(inputs)


def _shown(inputs) -> str:
    return ", ".join(map(str, _as_list(inputs)))
