"""What the model zoo holds (index.json), and d2_deformable://<name> as a path of Detectron2."""

import hashlib
import json
from pathlib import Path

from detectron2.utils.file_io import PathHandler, PathManager

FOLDER = Path(__file__).parent
PREFIX = "d2_deformable://"


def read_index() -> dict[str, dict]:
    """{file name: {"config": the YAML under configs/ it was trained with, "sha256", "bytes", ...}}.

    See `publish` for the other fields.
    """
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def get_checkpoint_url(config_path: str) -> str:
    """The MODEL.WEIGHTS that was trained with a config, as `detectron2.model_zoo` has it.

    Args:
        config_path: relative to configs/, e.g.
            "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml".

    Raises:
        ValueError: there is none.
    """
    urls = {entry["config"]: PREFIX + name for name, entry in read_index().items()}
    if config_path not in urls:
        raise ValueError(
            f"the model zoo holds no checkpoint of {config_path!r}; it has those of "
            f"{', '.join(urls)}"
        )
    return urls[config_path]


def checkpoint_file(name: str) -> Path:
    """The file `name` of the zoo, after its sha256 was compared with the index.

    Raises:
        FileNotFoundError: the zoo has no such name.
        OSError: the file is missing or is not the one of the index.
    """
    index = read_index()
    if name not in index:
        raise FileNotFoundError(f"{PREFIX}{name}: no such checkpoint; there is {', '.join(index)}")
    file = FOLDER / name
    found = sha256(file) if file.is_file() else "no file"
    if found != index[name]["sha256"]:
        raise OSError(
            f"{file} is not the checkpoint of the model zoo: its sha256 should be "
            f"{index[name]['sha256']}, but it is {found}. Restore the file (git checkout -- "
            f"d2_deformable/model_zoo), install d2_deformable again, or make zoo"
        )
    return file


def sha256(file) -> str:
    """Of a file's content, in hexadecimal."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class ModelZooHandler(PathHandler):
    """d2_deformable://<name>: the file of that name that came with this package, verified."""

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
