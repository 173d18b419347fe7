"""Weight files of MXNet (.params), read without MXNet.

The layout is that of `mx.nd.save` (src/ndarray/ndarray.cc of MXNet 0.9 to 1.9), little-endian:
a header, the number of arrays, the arrays, the number of names, the names. The layout of an array
changed three times; its first word identifies the version.
"""

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..utils.files import FileFormatError

LIST_MAGIC = 0x112
# The first word of an array. Before these versions it was the number of dimensions.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
MAX_DIMENSIONS = 32
STORAGES = {1: "row_sparse", 2: "csr"}
TYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
    7: torch.bool,
    8: torch.int16,
    12: torch.bfloat16,
}


def read_mxnet_params(path) -> dict[str, Tensor]:
    """Read the named arrays of a .params file; names keep their "arg:" and "aux:" prefixes.

    Nothing in the file can run code, and reading takes no more memory than the size of the file.

    Raises:
        FileFormatError (a ValueError): the file is of another format, truncated, damaged, without
            names, or holds arrays that are sparse, empty or of a type that torch does not have.
    """
    with Path(path).open("rb") as stream:
        reader = _Reader(stream, path)
        magic, _reserved = reader.unpack("QQ", "header")
        if magic != LIST_MAGIC:
            raise reader.error(
                f"it begins with {magic:#x} where an MXNet file has {LIST_MAGIC:#x}; expected what "
                "mx.nd.save or Module.save_params wrote"
            )
        count = reader.count("arrays", at_least=4)
        arrays = [reader.array(f"array {i} of {count}") for i in range(count)]
        names = [reader.read_name() for _ in range(reader.count("names", at_least=8))]
        if len(names) != count:
            raise reader.error(
                f"{count} arrays and {len(names)} names; expected a name for each, as mx.nd.save "
                "writes a dictionary"
            )
        if len(set(names)) != count:
            raise reader.error(f"the name {max(names, key=names.count)!r} occurs more than once")
        if reader.left:
            raise reader.error(f"{reader.left} bytes follow the last name")
    return dict(zip(names, arrays, strict=True))


class _Reader:
    """Reads values from a stream after checking their lengths against the rest of the file."""

    def __init__(self, stream: BinaryIO, path):
        self.stream = stream
        self.path = path
        self.left = os.fstat(stream.fileno()).st_size

    def error(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.path} cannot be read as an MXNet file: {what}")

    def read(self, size: int, what: str) -> bytearray:
        if size > self.left:
            raise self.error(f"{what} takes {size} bytes, but {self.left} are left")
        data = bytearray(size)
        if self.stream.readinto(data) != size:
            raise self.error(f"{what} ends early; was the file truncated while it was read?")
        self.left -= size
        return data

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self.read(struct.calcsize(f"<{layout}"), what))

    def count(self, items: str, at_least: int) -> int:
        """Read the number of arrays or names that follow; each takes `at_least` bytes or more."""
        (count,) = self.unpack("Q", f"number of {items}")
        if count * at_least > self.left:
            raise self.error(f"{count} {items} do not fit into the {self.left} bytes left")
        return count

    def read_name(self) -> str:
        """Read a length-prefixed UTF-8 name."""
        (size,) = self.unpack("Q", "length of a name")
        try:
            return self.read(size, "name").decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a name is not UTF-8 ({error.reason})") from error

    def array(self, what: str) -> Tensor:
        (magic,) = self.unpack("I", what)
        if magic in (V2, V3):
            (storage,) = self.unpack("i", f"storage type of {what}")
            if storage in STORAGES:
                raise self.error(
                    f"{what} is sparse ({STORAGES[storage]}); weights of convolutions and fully "
                    'connected layers are dense. Save it with .tostype("default")'
                )
            if storage:
                raise self.error(f"{what} has storage type {storage}; expected 0, a dense array")
        shape = self.shape(magic, what)
        if shape is None or (not shape and magic != V3):
            raise self.error(f"{what} has no values: it was saved before it was initialised")
        _device_type, _device, kind = self.unpack("iii", f"device and type of {what}")
        if kind not in TYPES:
            raise self.error(
                f"{what} is of type {kind}; expected one of {', '.join(map(str, TYPES))}: "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in TYPES.values())}"
            )
        dtype = TYPES[kind]
        # Zeros count as ones, because torch multiplies the other sizes into 64-bit strides.
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
            raise self.error(f"{what} has the impossible shape {shape}")
        data = self.read(math.prod(shape) * dtype.itemsize, f"{what}, {dtype} of shape {shape},")
        if dtype is torch.bool and data.strip(b"\0\1"):
            raise self.error(f"{what} is of type bool, but has bytes other than 0 and 1")
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def shape(self, magic: int, what: str) -> tuple[int, ...] | None:
        """Read a shape; None means that nothing follows.

        V3, where () is the shape of a scalar, writes an array without values in this way.
        """
        size = "q"
        if magic in (V1, V2, V3):
            (dimensions,) = self.unpack("i", f"number of dimensions of {what}")
            if magic == V3 and dimensions == -1:
                return None
        else:
            dimensions, size = magic, "I"
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(
                f"{what} has {dimensions} dimensions; expected up to {MAX_DIMENSIONS}, or one of "
                f"the words {V1:#x}, {V2:#x}, {V3:#x}"
            )
        shape = self.unpack(f"{dimensions}{size}", f"shape of {what}")
        if any(length < 0 for length in shape):
            raise self.error(f"{what} has the impossible shape {shape}")
        return shape
