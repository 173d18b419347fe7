"""Index files: they list checkpoints, with their configs, locations and sha256."""

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detectron2.utils.file_io import PathManager

from ..utils.text import one_line

FOLDER = Path(__file__).parent
# configs/ is beside this file in a wheel (see setup.py), and at the top level of a checkout.
CONFIGS = next((f for f in (FOLDER / "configs", FOLDER.parents[1] / "configs") if f.is_dir()), None)
REMOTE = ("http://", "https://", "ftp://")

_URL = re.compile(r"[a-z][a-z\d+.-]*://", re.IGNORECASE)
_SEGMENT = r"\w[\w.-]*"
_NAME = re.compile(_SEGMENT, re.ASCII)
_NAMESPACED = re.compile(rf"{_SEGMENT}(/{_SEGMENT})+", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """An entry of an index.

    Args:
        config: name by which `get_config` finds the YAML that it was trained with.
        config_file: path or URL of that YAML, where it is not one of this package.
        location: path or URL of the checkpoint.
        sha256: of the checkpoint, in hexadecimal.
        index: path or URL of the index file that contains it.
        ap: its COCO AP in percent, the field "AP", where that is a number.
    """

    config: str
    config_file: str | None
    location: str
    sha256: str
    index: str
    ap: float | None = None


def parse_index(path: str | Path, namespaced: bool = True) -> dict[str, Checkpoint]:
    """Read an index file as {name: checkpoint}.

    Args:
        path: a file or URL that Detectron2's PathManager opens; URLs are downloaded again.
        namespaced: whether its names need a namespace, as in all indexes except this package's.

    Raises:
        OSError: no such file (FileNotFoundError), or it cannot be read.
        ValueError: an entry or field is wrong; the message names it. See `register_index` for the
            fields.
    """
    path = str(path)
    try:
        entries = json.loads(Path(fetch(path)).read_bytes(), object_pairs_hook=_without_duplicates)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such index file") from None
    except OSError as error:
        raise OSError(f"{path}: this index file cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not an index of a model zoo: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not an index of a model zoo: expected {{name: entry, ...}}")
    return {name: _entry(path, name, entries[name], namespaced) for name in entries}


def fetch(path: str) -> str:
    """Return a local path for a path or URL.

    URLs are downloaded again, because PathManager's download cache neither distinguishes hosts nor
    notices that a file has changed.
    """
    if not path.startswith(REMOTE):
        return PathManager.get_local_path(path)
    folder = tempfile.mkdtemp(dir=_downloads().name)
    return PathManager.get_local_path(path, force=True, cache_dir=folder)


@cache
def _downloads() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when this process ends."""
    return tempfile.TemporaryDirectory()


def _without_duplicates(pairs) -> dict:
    """Make a dict of the (name, value) pairs of a JSON object; refuse a name that appears twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{one_line(twice)!r} appears twice in it")
    return found


def _entry(path: str, name: str, fields, namespaced: bool) -> Checkpoint:
    here = f"{path}: {one_line(name)!r}"
    if not (_NAMESPACED if namespaced else _NAME).fullmatch(name):
        form = "namespace/name.pth" if namespaced else "name.pth"
        raise ValueError(
            f"{here} must be a name of the form {form}, of letters, digits, _, - and ."
        )
    if not isinstance(fields, dict):
        raise ValueError(f"{here} must be a mapping of fields, not {one_line(fields)}")
    config, sha256, url = (fields.get(key) for key in ("config", "sha256", "url"))
    if not isinstance(config, str) or not config.endswith(".yaml"):
        raise ValueError(
            f"{here}, field config: expected the path of a .yaml, got {one_line(repr(config))}"
        )
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(
            f"{here}, field sha256: expected 64 hexadecimal digits (sha256sum gives them), got "
            f"{one_line(repr(sha256))}"
        )
    if "url" in fields and (not isinstance(url, str) or not url):
        raise ValueError(
            f"{here}, field url: expected a URL, or a path relative to the index, got "
            f"{one_line(repr(url))}"
        )
    config_file = None
    if namespaced and not is_packaged(config):
        config_file = beside(path, config, f"{here}, field config:")
        if not config_file.startswith(REMOTE) and not PathManager.isfile(config_file):
            raise ValueError(
                f"{here}, field config: {one_line(config)!r} is neither a config of this package "
                "nor a file beside the index"
            )
        config = f"{name.rpartition('.')[0] or name}.yaml"
    location = beside(path, url or name, f"{here}, field url:")
    ap = fields.get("AP")
    if isinstance(ap, bool) or not isinstance(ap, int | float) or not abs(ap) <= 100:
        ap = None
    return Checkpoint(config, config_file, location, sha256.lower(), path, ap)


def is_packaged(config: str) -> bool:
    """Whether `config` is the path of a file relative to this package's configs/."""
    outside = Path(config).is_absolute() or ".." in Path(config).parts
    return CONFIGS is not None and not outside and os.path.isfile(CONFIGS / config)


def beside(path: str, relative: str, here: str) -> str:
    """Resolve a path relative to the folder of `path`, a path or URL; a URL is returned unchanged.

    Args:
        here: the field that holds it, for the message.

    Raises:
        ValueError: it leads out of that folder.
    """
    is_url = _URL.match(relative)
    parts = relative.replace("\\", "/").split("/")
    if ".." in parts or not is_url and Path(relative).is_absolute():
        raise ValueError(
            f"{here} {one_line(relative)!r} leads out of the folder of the index; expected a path "
            "inside it, or a URL. Put the file there"
        )
    if is_url:
        return relative
    folder, slash, _ = path.partition("?")[0].rpartition("/")
    return f"{folder}{slash}{relative.removeprefix('./')}"
