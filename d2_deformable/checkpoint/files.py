"""Weight files, read without running code in them and written atomically.

The format is detected from the content: safetensors, .pth of any torch version, pickles of NumPy
arrays such as those of Detectron2's model zoo, and .params of MXNet.
"""

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..utils import restricted_pickle
from ..utils.files import FileFormatError, check_folder, replacing
from ..utils.text import one_line
from .mxnet_params import read_mxnet_params
from .torch_files import LEGACY_MAGIC, load_torch

# Keys under which files keep their weights, if not at the top level: Detectron2 and this package;
# mmdetection, timm and Lightning; pycls; Detectron.
SECTIONS = ("model", "state_dict", "model_state", "blobs")
MXNET_MAGIC = (0x112).to_bytes(8, "little")


def read_weights(path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Read the named tensors of any supported file, on the CPU.

    Weights under "model", "state_dict", "model_state" or "blobs" are taken from there. Other data
    in the file is ignored.

    Args:
        trust_pickle: fall back to Python's unpickler, with a warning, for files that the safe
            reader rejects. It runs any code in the file: use it only if you trust the author.

    Raises:
        FileFormatError: the file cannot be read; one sentence says why.
        FileNotFoundError: there is no such file.
    """
    return weights_in(path, read_content(path, trust_pickle=trust_pickle))


def weights_in(path, content) -> dict[str, Tensor]:
    """Find the weights in the `content` of the file `path`, see `read_weights`."""
    for section in SECTIONS:
        if isinstance(content, Mapping) and isinstance(content.get(section), Mapping):
            content = content[section]
    return named_tensors(path, content)


def named_tensors(path, content) -> dict[str, Tensor]:
    """Return the `content` of the file `path` as named tensors; arrays become tensors.

    The layer versions of a state_dict (`_metadata`) are kept.

    Raises:
        FileFormatError: the content is anything else, or empty.
    """
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected named tensors")
    if not content:
        raise FileFormatError(f"{path} holds no weights")
    # An array under many names is converted once, or a small file would fill the memory.
    converted = {id(value): _tensor(path, name, value) for name, value in content.items()}
    tensors = OrderedDict((name, converted[id(value)]) for name, value in content.items())
    if hasattr(content, "_metadata"):
        if not _are_versions(content._metadata):
            raise FileFormatError(
                f"{path} holds layer versions (_metadata) that are no whole numbers; expected what "
                "state_dict() gives"
            )
        tensors._metadata = content._metadata
    return tensors


def _are_versions(metadata) -> bool:
    """Check that it is {module: {"version": number, ...}, ...}, which torch relies on."""
    entries = metadata.values() if isinstance(metadata, Mapping) else [None]
    return all(
        isinstance(entry, Mapping) and isinstance(entry.get("version"), int | None)
        for entry in entries
    )


def read_content(path, *, trust_pickle: bool = False):
    """Read the whole content of a supported file, e.g. a training checkpoint or proposals.

    Arguments and errors are those of `read_weights`.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder, not a weights file")
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
    """Detect "safetensors", "zip" or "legacy" (torch) or "mxnet"; anything else is "pickle"."""
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
        return read_mxnet_params(path)
    if kind == "safetensors":
        return _safetensors().load(path.read_bytes())
    return restricted_pickle.load(io.BytesIO(path.read_bytes()))


def write_weights(weights: Mapping[str, Tensor], path, metadata=None) -> None:
    """Write tensors atomically, as .safetensors or as a .pth {"model": weights}.

    Args:
        weights: named tensors. Only a tensor's own values are written, even if it is a view.
        metadata: {name: text}, stored beside the weights.

    Raises:
        FileFormatError: `path` has another suffix.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    check_target(path)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", **(metadata or {})}
            # save_file would create a file that only its owner can read.
            part.write_bytes(_safetensors().save(weights, metadata))
        else:
            with open(part, "wb") as file:  # given a path, torch.save stores its name in the file
                torch.save({"model": weights, **(metadata or {})}, file)


def check_target(path) -> None:
    """Check that `write_weights` can write to `path`, before the work is done.

    Raises:
        FileFormatError: `path` has another suffix, or is a folder.
        FileNotFoundError: the folder to write into does not exist.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors") or path.is_dir():
        raise FileFormatError(f"{path}: weights are written to a file, .pth or .safetensors")
    if path.suffix == ".safetensors":
        _safetensors()
    check_folder(path)


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
            f"{path} holds a {type(value).__name__} under {one_line(name)}; expected named tensors"
        )
    return value.detach()


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise FileFormatError(
            ".safetensors files need the package safetensors: pip install safetensors"
        ) from error
    return safetensors.torch


def _error(path: Path, error: Exception) -> FileFormatError:
    hint = (
        "; `d2-deformable convert --trust-pickle` reads it anyway and runs any code in it"
        if "it names" in str(error)
        else ""
    )
    return FileFormatError(
        f"{path} is not a weights file that can be read safely: {one_line(error)}{hint}"
    )
