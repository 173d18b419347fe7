"""Image files: finding them by stem, and their sizes as Detectron2 reads them."""

from functools import cache
from pathlib import Path, PureWindowsPath

from PIL import Image

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


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
            ValueError: several images share the stem and <filename> is none of them.
        """
        folder, base = (self.root / stem).parent, Path(stem).name
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
        if filename and (folder / filename).is_file():
            return folder / filename
        raise FileNotFoundError(
            f"{xml}: no image {base}.* in {folder}"
            + (f", nor its <filename> {filename}" if filename else "")
        )


def is_image(path: Path) -> bool:
    """Whether Pillow can read files with this suffix."""
    return path.suffix.lower() in _readable_suffixes()


@cache
def _readable_suffixes() -> frozenset[str]:
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in suffixes if kind in Image.OPEN)


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    """{stem: [file name, ...]} of the files in `folder` whose suffix Pillow can read."""
    stems = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_image(path):
            stems.setdefault(path.stem, []).append(path.name)
    return stems


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) from the header, swapped where Detectron2 rotates the image by its EXIF.

    Raises:
        ValueError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
    except Exception as error:  # Pillow's readers raise many types on broken files
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return (height, width) if sideways else (width, height)
