"""The PNGs beside a report: marked, so that the report never touches the user's own pictures."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from ..utils.files import replacing

MARK = {"Source": "d2_deformable report"}  # a text of the PNG's header
_MARK = b"tEXtSource\0" + MARK["Source"].encode()


def remove_pictures(folder: Path) -> None:
    """Remove the PNGs of an earlier report from a folder, and nothing else."""
    for file in folder.glob("*.png"):
        if _is_of_a_report(file):
            file.unlink()


def save_picture(figure, file: Path, caption: str) -> str:
    """Save the figure as PNG; return HTML that embeds it as JPEG, which is much smaller.

    Raises:
        FileExistsError: a file of this name exists that no report wrote.
    """
    if (file.exists() or file.is_symlink()) and not _is_of_a_report(file):
        raise FileExistsError(
            f"{file}: this file, which no report wrote, has the name of a picture of the report. "
            "Move it"
        )
    jpeg = io.BytesIO()
    with replacing(file) as part:
        figure.savefig(part, metadata=MARK)
        with Image.open(part) as picture:
            picture.convert("RGB").save(jpeg, "JPEG", quality=88, subsampling=0)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(file.stem)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _is_of_a_report(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as content:
        return _MARK in content.read(1024)  # texts come before the pixels
