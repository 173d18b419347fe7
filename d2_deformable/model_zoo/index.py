"""An index file: which checkpoints there are, of which configs, where, and their sha256."""

import json
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detectron2.utils.file_io import PathManager

FOLDER = Path(__file__).parent
# In a wheel they lie beside this file (see setup.py), in a checkout at its top.
CONFIGS = next((f for f in (FOLDER / "configs", FOLDER.parents[1] / "configs") if f.is_dir()), None)
REMOTE = ("http://", "https://", "ftp://")

_SEGMENT = r"\w[\w.-]*"
_NAME = re.compile(_SEGMENT, re.ASCII)
_NAMESPACED = re.compile(rf"{_SEGMENT}(/{_SEGMENT})+", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """An entry of an index.

    Args:
        config: how `get_config` knows the YAML it was trained with.
        config_file: that YAML where it is not one of this package, a path or URL.
        location: the file, a path or URL.
        sha256: of the file, in hexadecimal.
        index: the index file it stands in, a path or URL.
    """

    config: str
    config_file: str | None
    location: str
    sha256: str
    index: str


def parse_index(path: str, namespaced: bool = True) -> dict[str, Checkpoint]:
    """{name: checkpoint} of an index file.

    Args:
        path: a file or URL that Detectron2's PathManager understands; URLs are read anew.
        namespaced: whether its names need a namespace, as all but this package's do.

    Raises:
        OSError: no such file (FileNotFoundError), or it cannot be read.
        ValueError: one sentence that names the entry and field that is wrong; see
            `register_index` for the fields.
    """
    path = str(path)
    try:
        entries = json.loads(Path(fetch(path)).read_bytes(), object_pairs_hook=_no_name_twice)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such index file") from None
    except OSError as error:
        raise OSError(f"{path}: this index file cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no index of a model zoo: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is no index of a model zoo: expected {{name: entry, ...}}")
    return {name: _entry(path, name, entries[name], namespaced) for name in entries}


def fetch(path: str) -> str:
    """A local path of what may be a URL, downloaded anew: PathManager's cache of downloads knows
    neither the host nor when a file has changed."""
    if not path.startswith(REMOTE):
        return PathManager.get_local_path(path)
    folder = tempfile.mkdtemp(dir=_downloads().name)
    return PathManager.get_local_path(path, force=True, cache_dir=folder)


@cache
def _downloads() -> tempfile.TemporaryDirectory:
    """A folder that lives as long as this process."""
    return tempfile.TemporaryDirectory()


def _no_name_twice(pairs) -> dict:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} stands twice in it")
    return dict(pairs)


def _entry(path: str, name: str, fields, namespaced: bool) -> Checkpoint:
    here = f"{path}: {name!r}"
    if not (_NAMESPACED if namespaced else _NAME).fullmatch(name):
        form = "namespace/name.pth" if namespaced else "name.pth"
        raise ValueError(
            f"{here} must be a name of the form {form}, of letters, digits, _, - and ."
        )
    if not isinstance(fields, dict):
        raise ValueError(f"{here} must be a mapping of fields, not {fields!r}")
    config, sha256, url = (fields.get(key) for key in ("config", "sha256", "url"))
    if not isinstance(config, str) or not config.endswith(".yaml"):
        raise ValueError(f"{here}, field config: expected the path of a .yaml, got {config!r}")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(
            f"{here}, field sha256: expected 64 hexadecimal digits (sha256sum gives them), got "
            f"{sha256!r}"
        )
    if "url" in fields and (not isinstance(url, str) or not url):
        raise ValueError(
            f"{here}, field url: expected a URL, or a path relative to the index, got {url!r}"
        )
    config_file = None
    if namespaced and not is_packaged(config):
        config_file = beside(path, config)
        if not config_file.startswith(REMOTE) and not PathManager.isfile(config_file):
            raise ValueError(
                f"{here}, field config: {config!r} is neither a config of this package nor a file "
                "beside the index"
            )
        config = f"{name.rpartition('.')[0] or name}.yaml"
    location = beside(path, url or name)
    return Checkpoint(config, config_file, location, sha256.lower(), path)


def is_packaged(config: str) -> bool:
    """Whether `config` is the path of a file relative to this package's configs/."""
    outside = Path(config).is_absolute() or ".." in Path(config).parts
    return CONFIGS is not None and not outside and (CONFIGS / config).is_file()


def beside(path: str, relative: str) -> str:
    """A path or URL relative to the folder of `path`, itself a path or URL."""
    if "://" in relative or Path(relative).is_absolute():
        return relative
    folder, slash, _ = path.partition("?")[0].rpartition("/")
    return f"{folder}{slash}{relative.removeprefix('./')}"
