"""What torch.save wrote, as a zip archive or in the layout before torch 1.6.

`torch.load(weights_only=True)` runs no code of a file, but believes its sizes: a storage may claim
more than its record holds, and a few bytes may ask for gigabytes. Files are therefore screened
first. Arrays of numpy, which it refuses, come through the restricted unpickler.
"""

import io
import pickle
import zipfile
from pathlib import Path

import torch

from . import restricted_pickle
from .restricted_pickle import ClaimedStorage, Unpickler

# The first pickle of a file before torch 1.6: torch's magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def load_torch(path: Path, data: bytes | None = None):
    """The content of a zip archive of torch.save, or of the older layout from its bytes.

    Raises:
        pickle.UnpicklingError, ValueError, zipfile.BadZipFile: it is damaged, or holds other things
            than tensors, arrays, numbers, texts and containers of these.
    """
    if data is None:
        _screen_zip(path)
    else:
        _screen_legacy(data)
    source = path if data is None else io.BytesIO(data)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        source = path if data is None else io.BytesIO(data)
        return torch.load(
            source,
            map_location="cpu",
            weights_only=False,  # which means what follows
            pickle_module=restricted_pickle,
            encoding="latin1",
        )


class _Screen(Unpickler):
    """Goes through a pickle without its tensors' values."""

    sizes = None  # of the records of storages, in bytes, by their keys; None: not known

    def persistent_load(self, identity):
        kind, storage, key, _, numel, *_ = identity
        claimed = kind == "storage" and isinstance(storage, ClaimedStorage)
        if not (claimed and type(numel) is int and numel >= 0):
            raise pickle.UnpicklingError("a storage of it has no type or size")
        size = numel * storage.itemsize
        if self.sizes is None:
            self._spend(size)
        elif self.sizes.get(key) != size:
            raise pickle.UnpicklingError(f"it has no {size} bytes of a storage {key!r}")
        return ClaimedStorage(numel, storage.itemsize)


def _screen_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        total = sum(info.file_size for info in records.values())
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(records) != len(archive.infolist()):
            raise ValueError("a zip archive without one data.pkl, which torch.save writes")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in records:
            raise ValueError("a TorchScript program, of which the weights alone cannot be read")
        if total > path.stat().st_size or any(i.compress_type for i in records.values()):
            raise ValueError("an archive whose records are compressed or overlap, unlike torch's")
        if damaged := archive.testzip():
            raise ValueError(f"an archive whose record {damaged} is damaged")
        screen = _Screen(io.BytesIO(archive.read(pickles[0])), limit=total)
        screen.sizes = {
            name.removeprefix(f"{prefix}data/"): info.file_size for name, info in records.items()
        }
        screen.load()


def _screen_legacy(data: bytes) -> None:
    """Magic number, version, byte order and sizes, the object, and the names of its storages."""
    file = io.BytesIO(data)
    for _ in range(5):
        _Screen(file, limit=len(data)).load()
