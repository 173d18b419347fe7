"""Shared by the targets that read files: a folder to write to, and what a refusal looks like."""

import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

_temporary = tempfile.TemporaryDirectory(prefix="fuzz-")
FOLDER = Path(_temporary.name)  # one for each process
SIZE = (16, 8)


@contextmanager
def refused_in_a_sentence(file: Path):
    """Context in which a file is read: it may be refused by one sentence that names a file.

    Raises:
        AssertionError: the error is of another type, or not such a sentence.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        message = str(error)
        # Not a subclass, such as UnicodeDecodeError: those come from code that did not expect it.
        raised = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "d2_deformable" in raised, f"{type(error).__name__} from {raised}: {message}"
        assert str(file.parent) in message, f"names no file: {message}"
        assert "\n" not in message and len(message) < 3000, f"is no sentence: {message}"


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 160, 30)).save(file)
    return file
