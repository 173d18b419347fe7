"""The known checkpoints, and d2_deformable://<name> as a Detectron2 path.

The known checkpoints are those that come with this package (index.json), those of `register_index`,
and those of the index files named in the environment variable D2_DEFORMABLE_INDEX, so that commands
find them too. The variable holds paths or URLs, separated by commas, which are read on first use.
"""

import json
import os
import re
from pathlib import Path

from detectron2.utils.file_io import PathHandler, PathManager

from ..compat import require_private
from ..utils.files import sha256
from .index import FOLDER, REMOTE, Checkpoint, parse_index

require_private(PathHandler, "_check_kwargs", "_get_local_path", "_get_supported_prefixes", "_open")

PREFIX = "d2_deformable://"
VARIABLE = "D2_DEFORMABLE_INDEX"

_registered: dict[str, dict[str, Checkpoint]] = {}  # by index file


class NotInModelZooError(RuntimeError, ValueError):
    """No such config or checkpoint. A RuntimeError, as in `detectron2.model_zoo`, and a ValueError,
    as for every wrong argument in this package."""


def register_index(path) -> list[str]:
    """Register the checkpoints of your own index file under d2_deformable://<name>.

    The file is JSON, {name: {"config": ..., "sha256": ..., "url": ...}}. Other fields are ignored,
    except that `summary` reports "AP"; they may hold notes for people::

        {
          "acme/bolts.pth": {
            "config": "bolts.yaml",
            "url": "https://models.acme.example/bolts/model_final.pth",
            "sha256": "585af5df1477dc9cc072ba8ff44d509e7a9395388b8b055be97ad0a569f0a187"
          }
        }

    - name: a namespace, "/", and a name.
    - config: a YAML of this package's configs/ ("VOC-Detection/rfcn_R_101.yaml"), a URL, or a path
      relative to the index and inside its folder. `get_config` finds the latter two under the
      checkpoint's name, here "acme/bolts.yaml". A config fetched from a URL must not have a
      relative `_BASE_`.
    - url: a URL that Detectron2's PathManager opens, or a path relative to the index and inside its
      folder. Default: the name, beside the index.
    - sha256: of the file; checked whenever the file is requested.

    A YAML of an index runs no code, but it may name other files (`_BASE_`) and data sets: register
    only what you trust.

    Args:
        path: a file or URL that Detectron2's PathManager opens. It is read again if it is
            registered again.

    Returns:
        the names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an entry or field is wrong, or is already in another index; the message names
            it. Nothing is registered then.
    """
    path = str(path)
    if "://" not in path:
        path = os.path.abspath(path)
    entries = parse_index(path)
    others = {
        name: entry
        for index in [_packaged(), *(_registered[p] for p in _registered if p != path)]
        for name, entry in index.items()
    }
    configs = {entry.config: name for name, entry in others.items()}
    for name, entry in entries.items():
        if name in others:
            raise ValueError(
                f"{path}: {name!r} is the name of a checkpoint in {others[name].index}; choose "
                "another name"
            )
        if (other := configs.setdefault(entry.config, name)) != name:
            raise ValueError(
                f"{path}: {name!r}, field config: {entry.config} has the checkpoint {other!r}; "
                "give this one a YAML of its own"
            )
    _registered[path] = entries
    return list(entries)


def checkpoints() -> dict[str, Checkpoint]:
    """All known checkpoints, {name: entry}.

    Raises:
        FileNotFoundError, ValueError: for an index in D2_DEFORMABLE_INDEX, see `register_index`.
    """
    for path in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        known = path if "://" in path else os.path.abspath(path)
        if known not in _registered:
            try:
                register_index(path)
            except (OSError, ValueError) as error:
                raise type(error)(f"{error} (from the environment variable {VARIABLE})") from None
    known = _packaged()
    for entries in _registered.values():
        known = known | entries
    return known


def read_index() -> dict[str, dict]:
    """The index that comes with this package, {name: fields}. See `publish` for the fields."""
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def _packaged() -> dict[str, Checkpoint]:
    return parse_index(FOLDER / "index.json", namespaced=False)


def get_checkpoint_url(config_path: str) -> str:
    """The MODEL.WEIGHTS trained with a config, as in `detectron2.model_zoo`.

    Args:
        config_path: relative to configs/, e.g.
            "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", or from a registered index.

    Raises:
        NotInModelZooError: there is no such checkpoint.
    """
    urls = {entry.config: PREFIX + name for name, entry in checkpoints().items()}
    config = yaml_of(config_path)
    if config not in urls:
        raise NotInModelZooError(
            f"the model zoo holds no checkpoint of {config_path!r}; it has those of "
            f"{', '.join(urls)}. Checkpoints of your own: model_zoo.register_index"
        )
    return urls[config]


def yaml_of(config_path: str) -> str:
    """The YAML of which a .py is the LazyConfig twin; a YAML is returned unchanged."""
    return re.sub(r"\.py$", ".yaml", config_path)


def checkpoint_file(name: str) -> Path:
    """The file `name` of the zoo, after its sha256 has been compared with the index.

    Raises:
        FileNotFoundError: the zoo has no such name.
        OSError: the file is missing, or its sha256 is not that of the index.
    """
    known = checkpoints()
    if name not in known:
        raise FileNotFoundError(f"{PREFIX}{name}: no such checkpoint; there is {', '.join(known)}")
    entry = known[name]
    file = _fetch(entry.location)
    found = sha256(file) if file.is_file() else "no file"
    if found not in (entry.sha256, "no file") and entry.location.startswith(REMOTE):
        # The download cache may hold an older file, or one with the same path on another host.
        file.unlink()
        file = _fetch(entry.location)
        found = sha256(file)
    if found != entry.sha256:
        remedy = f"restore it, or correct {entry.index}"
        if file.parent == FOLDER:
            remedy = (
                "restore the file (git checkout -- d2_deformable/model_zoo), install d2_deformable "
                "again, or run `make zoo`"
            )
        raise OSError(
            f"{file} is not the checkpoint {name} of the model zoo: its sha256 should be "
            f"{entry.sha256}, but it is {found}; {remedy}"
        )
    return file


def _fetch(location: str) -> Path:
    try:
        return Path(PathManager.get_local_path(location))
    except FileNotFoundError:
        return Path(location)
    except OSError as error:  # urllib's errors do not name the URL
        raise OSError(f"{location} cannot be fetched: {error}") from error


class ModelZooHandler(PathHandler):
    """Resolves d2_deformable://<name> to the verified checkpoint, which it downloads if needed."""

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        self._check_kwargs(kwargs)
        return str(checkpoint_file(path.removeprefix(PREFIX)))

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can be read only; mode is {mode!r}")
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(ModelZooHandler())
