"""Files of torch.save, as a zip archive or in the layout before torch 1.6.

`torch.load(weights_only=True)` runs no code of a file, but trusts its sizes: a storage may claim
more than its record holds, and a few bytes may request gigabytes. Files are therefore screened
first. NumPy arrays, which it rejects, are read by the restricted unpickler.
"""

import io
import pickle
import zipfile
from pathlib import Path

import torch

from ..utils import restricted_pickle
from ..utils.restricted_pickle import ClaimedStorage, Unpickler

# The first pickle of a file before torch 1.6: torch's magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def load_torch(path: Path, data: bytes | None = None):
    """Read a zip archive of torch.save, or the older layout if its bytes are given as `data`.

    Raises:
        pickle.UnpicklingError, ValueError, zipfile.BadZipFile: the file is damaged, or holds
            anything but tensors, arrays, numbers, strings and containers of these.
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
            weights_only=False,  # pickle_module restricts it instead
            pickle_module=restricted_pickle,
            encoding="latin1",
        )


class _Screen(Unpickler):
    """Unpickles a file without the values of its tensors, to check their sizes."""

    sizes = None  # {storage key: bytes of its record}; None if not known

    def persistent_load(self, identity):
        kind, storage, key, _, numel, *_ = identity
        claimed = kind == "storage" and isinstance(storage, ClaimedStorage)
        if not (claimed and type(numel) is int and numel >= 0):
            raise pickle.UnpicklingError("it has a storage without type or size")
        size = numel * storage.itemsize
        if self.sizes is None:
            self._spend(size)
        elif self.sizes.get(key) != size:
            raise pickle.UnpicklingError(
                f"its record of storage {key!r} does not hold {size} bytes"
            )
        return ClaimedStorage(numel, storage.itemsize)


def _screen_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        total = sum(info.file_size for info in records.values())
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(records) != len(archive.infolist()):
            raise ValueError("a zip archive without the one data.pkl that torch.save writes")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in records:
            raise ValueError("a TorchScript program; expected a file of weights only")
        if total > path.stat().st_size or any(i.compress_type for i in records.values()):
            raise ValueError("an archive whose records are compressed or overlap, unlike torch's")
        if damaged := archive.testzip():
            raise ValueError(f"an archive whose record {damaged} is damaged")
        screen = _Screen(io.BytesIO(archive.read(pickles[0])), file_size=total)
        screen.sizes = {
            name.removeprefix(f"{prefix}data/"): info.file_size for name, info in records.items()
        }
        screen.load()


def _screen_legacy(data: bytes) -> None:
    """Screen the five pickles: magic number, version, system info, the object, storage keys."""
    file = io.BytesIO(data)
    for _ in range(5):
        _Screen(file, file_size=len(data)).load()
