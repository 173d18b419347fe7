"""Files of weights: read without running what is in them, written whole or not at all.

Formats are told by their content: safetensors, .pth of any torch, pickles of numpy arrays as those
of Detectron2's model zoo, and .params of MXNet.
"""

import io
import os
import pickle
import secrets
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import restricted_pickle
from .torch_files import LEGACY_MAGIC, load_torch

# Where files keep their weights, if not at the top: Detectron2 and this package; mmdetection,
# timm and Lightning; pycls; Detectron.
SECTIONS = ("model", "state_dict", "model_state", "blobs")
MXNET_MAGIC = (0x112).to_bytes(8, "little")


class FileFormatError(ValueError):
    """A file that is damaged, of another format, or holds what must not be run."""


def read_weights(path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of any supported file by their names, on the CPU.

    Weights under "model", "state_dict", "model_state" or "blobs" are taken from there; beside them
    a file may hold anything that is data, which is left out.

    Args:
        trust_pickle: read what the safe way refuses by Python's unpickler, with a warning. It runs
            whatever code the file holds: only for files whose author you trust.

    Raises:
        FileFormatError: one sentence on what is wrong with the file.
        FileNotFoundError: there is none.
    """
    return weights_in(path, read_content(path, trust_pickle=trust_pickle))


def weights_in(path, content) -> dict[str, Tensor]:
    """The weights in `content` of the file `path`, see `read_weights`."""
    for section in SECTIONS:
        if isinstance(content, Mapping) and isinstance(content.get(section), Mapping):
            content = content[section]
    return named_tensors(path, content)


def named_tensors(path, content) -> dict[str, Tensor]:
    """`content` of the file `path` as tensors by their names; arrays become tensors.

    The versions of layers that a state_dict comes with are kept.

    Raises:
        FileFormatError: it is anything else, or empty.
    """
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, no weights by their names")
    if not content:
        raise FileFormatError(f"{path} holds no weights")
    # An array under many names is converted once, or a small file would fill the memory.
    converted = {id(value): _tensor(path, name, value) for name, value in content.items()}
    tensors = OrderedDict((name, converted[id(value)]) for name, value in content.items())
    if hasattr(content, "_metadata"):
        tensors._metadata = content._metadata
    return tensors


def read_content(path, *, trust_pickle: bool = False):
    """All that a supported file holds, e.g. a training's checkpoint or proposals.

    Arguments and errors are those of `read_weights`.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder, not a file of weights")
    kind = file_format(path)
    try:
        return _read(path, kind)
    except FileFormatError:
        raise
    except Exception as error:  # damaged files raise any type
        if trust_pickle and kind in ("zip", "legacy", "pickle"):
            return _read_trusted(path, kind)
        raise _error(path, error) from error


def file_format(path) -> str:
    """ "safetensors", "zip" or "legacy" (torch), "mxnet", or "pickle" for anything else."""
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_MAGIC))
    if start[:4] == b"PK\x03\x04":
        return "zip"
    if start == LEGACY_MAGIC:
        return "legacy"
    if start[:8] == MXNET_MAGIC:
        return "mxnet"
    # The length of the header, and its first brace.
    return "safetensors" if start[4:9] == b"\0\0\0\0{" else "pickle"


def _read(path: Path, kind: str):
    if kind == "zip":
        return load_torch(path)
    if kind == "legacy":
        return load_torch(path, path.read_bytes())
    if kind == "mxnet":
        from .mxnet_params import read_mxnet_params

        return read_mxnet_params(path)
    if kind == "safetensors":
        return _safetensors().load(path.read_bytes())
    return restricted_pickle.load(io.BytesIO(path.read_bytes()))


def write_weights(weights: Mapping[str, Tensor], path, metadata=None) -> None:
    """Write tensors as .safetensors, or as a .pth {"model": weights}, whole or not at all.

    Args:
        weights: by their names. Each is written with its own values only, also where it is a view.
        metadata: {name: text}, beside the weights.

    Raises:
        FileFormatError: another suffix.
        FileNotFoundError: no such folder.
    """
    path = Path(path)
    check_target(path)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", **(metadata or {})}
            # save_file would make a file that nobody but its owner can read.
            part.write_bytes(_safetensors().save(weights, metadata))
        else:
            with open(part, "wb") as file:  # of a path, torch.save writes the name into the file
                torch.save({"model": weights, **(metadata or {})}, file)


def check_target(path) -> None:
    """Refuse what `write_weights` could not write; before the work is done.

    Raises:
        FileFormatError: another suffix, or a folder.
        FileNotFoundError: no such folder to write into.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors") or path.is_dir():
        raise FileFormatError(f"{path}: weights are written to a file, .pth or .safetensors")
    if path.suffix == ".safetensors":
        _safetensors()
    _check_folder(path)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at a clean end.

    Readers see the old file or the new one, whole; of a failure nothing is left.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    _check_folder(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_trusted(path: Path, kind: str):
    warnings.warn(
        f"{path} is read by Python's unpickler, which runs any code that the file holds "
        "(trust_pickle)",
        stacklevel=4,
    )
    try:
        if kind != "pickle":
            return torch.load(path, map_location="cpu", weights_only=False)
        with open(path, "rb") as file:
            return pickle.load(file, encoding="latin1")
    except Exception as error:  # unpickling raises any type
        raise _error(path, error) from error


def _tensor(path: Path, name, value) -> Tensor:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or not isinstance(name, str):
        raise FileFormatError(
            f"{path} holds a {type(value).__name__} under {_short(name)}, where tensors by their "
            "names were expected"
        )
    return value.detach()


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise FileFormatError(
            "files of .safetensors need the package safetensors: pip install safetensors"
        ) from error
    return safetensors.torch


def _error(path: Path, error: Exception) -> FileFormatError:
    hint = (
        "; trust_pickle (--trust-pickle) reads it nevertheless and runs what it holds"
        if "it names" in str(error)
        else ""
    )
    return FileFormatError(
        f"{path} is no file of weights that can be read safely: {_short(error)}{hint}"
    )


def _short(value) -> str:
    """What a file gave, on one line of bounded length."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])
