"""Find files by stem or suffix, whatever the case of the suffix."""

import os
from functools import cache
from itertools import pairwise, product
from pathlib import Path, PureWindowsPath

from PIL import Image

from ..utils.pixels import readable_formats
from ..utils.text import one_line
from .checks import named_path


class ImageFolder:
    """Finds the image of an annotation by its stem, whatever the suffix."""

    def __init__(self, root: Path):
        self.root = root
        self._listing = cache(_images_by_stem)  # each subfolder is listed once

    def find(self, stem: str, filename: str | None, xml: Path) -> Path:
        """Find the image with this stem, or else the one called `filename`.

        Among several images with this stem, `filename` decides. The stem takes precedence because
        XML files that were copied or renamed keep their old <filename>.

        Raises:
            FileNotFoundError: neither exists.
            ValueError: several images share the stem and <filename> is none of them, or the stem
                leads out of the folder.
        """
        path = named_path(self.root, stem, "IMAGES", f"{xml}, or its SPLIT,")
        folder, base = path.parent, path.name
        # Some tools write the image's path on the machine where it was annotated.
        filename = PureWindowsPath((filename or "").strip()).name
        candidates = self._listing(folder).get(base, ())
        if filename in candidates:
            return folder / filename
        if len(candidates) > 1:
            raise ValueError(
                f"{xml}: {', '.join(candidates)} in {folder} all have its name; keep one, or name "
                "the right one in <filename> of an XML"
            )
        if candidates:
            return folder / candidates[0]
        if filename and os.path.isfile(folder / filename):
            return folder / filename
        raise FileNotFoundError(
            f"{xml}: no image {base}.* in {folder}"
            + (f", nor its <filename> {one_line(filename)}" if filename else "")
        )


def visible_files(folder: Path) -> list[Path]:
    """Everything in a folder and its subfolders, sorted, without hidden files and folders.

    macOS adds ._a.jpg to a.jpg, and notebooks a folder .ipynb_checkpoints.
    """
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if not any(map(_is_hidden, p.relative_to(folder).parts))]


def has_suffix(path: Path, *suffixes: str) -> bool:
    """Whether a file is not hidden and has one of these suffixes, which are given in lower case."""
    return path.suffix.lower() in suffixes and not _is_hidden(path.name)


def is_image(path: Path) -> bool:
    """Whether a file is not hidden and has a suffix that Pillow can read."""
    return has_suffix(path, *_readable_suffixes())


def stems(folder: Path, suffix: str) -> list[str]:
    """Stems of the files of a folder with this suffix, in lower or upper case, sorted.

    Raises:
        ValueError: two files differ only in the case of their suffix.
    """
    found = sorted(path.stem for path in folder.iterdir() if has_suffix(path, suffix))
    for stem, following in pairwise(found):
        if stem == following:
            raise ValueError(
                f"{folder}: has two files {stem}{suffix}, which differ in the case of their "
                "suffix; keep one"
            )
    return found


def in_any_case(path: Path) -> Path:
    """The file that differs from `path` only in the case of its suffix; `path` if none exists."""
    if path.suffix and not os.path.isfile(path):
        for letters in product(*((c.lower(), c.upper()) for c in path.suffix[1:])):
            other = path.with_suffix("." + "".join(letters))
            if os.path.isfile(other):
                return other
    return path


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


@cache
def _readable_suffixes() -> frozenset[str]:
    formats = readable_formats()
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in suffixes if kind in formats)


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    """{stem: [file name, ...]} of the files in `folder` whose suffix Pillow can read."""
    stems = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_image(path):
            stems.setdefault(path.stem, []).append(path.name)
    return stems
