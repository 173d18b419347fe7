"""MXNet files written by hand, as the versions of `mx.nd.save` write them.

A file is little-endian. It holds 0x112 and 0 as 64-bit words; the number of arrays and the arrays;
the number of names, and the length and bytes of each name. An array of version 1, 2 or 3 has its
magic word, the storage type (from version 2 on), the number of dimensions, the dimensions in 64
bits, device type and number, the type of its values, and the values. Version 0 has no magic word
and has dimensions in 32 bits.
"""

import struct

import numpy as np

KINDS = {
    "float32": 0,
    "float64": 1,
    "float16": 2,
    "uint8": 3,
    "int32": 4,
    "int8": 5,
    "int64": 6,
    "bool": 7,
    "int16": 8,
}


def array_bytes(value, version: int = 2) -> bytes:
    value = np.asarray(value)
    out = struct.pack("<I", 0xF993FAC7 + version) if version else b""
    out += struct.pack("<i", 0) if version >= 2 else b""
    out += struct.pack("<I", value.ndim)
    out += struct.pack(f"<{value.ndim}{'q' if version else 'I'}", *value.shape)
    out += struct.pack("<iii", 1, 0, KINDS[value.dtype.name])
    return out + value.tobytes()


def file_bytes(arrays: dict, version: int = 2) -> bytes:
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    parts += [array_bytes(value, version) for value in arrays.values()]
    parts += [struct.pack("<Q", len(arrays))]
    parts += [struct.pack("<Q", len(name.encode())) + name.encode() for name in arrays]
    return b"".join(parts)
