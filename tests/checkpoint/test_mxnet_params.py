"""The reader of MXNet's .params, on files written by hand and on one written by MXNet."""

import resource
import struct

import numpy as np
import pytest
import torch
from checkpoint.mxnet_files import array_bytes, file_bytes

from d2_deformable.checkpoint import FileFormatError, read_weights
from d2_deformable.checkpoint.mxnet_params import read_mxnet_params

# Written by mx.nd.save(file, {"arg:w": [[0, 1, 2], [3, 4, 5]] in float32,
# "aux:h": [1, 2] in float16}) of MXNet 1.9.1.
BY_MXNET = bytes.fromhex(
    "120100000000000000000000000000000200000000000000"
    "c9fa93f9000000000200000002000000000000000300000000000000010000000000000000000000"
    "000000000000803f0000004000004040000080400000a040"
    "c9fa93f90000000001000000020000000000000001000000000000000200000 0003c0040"
    "02000000000000000500000000000000 6172673a77 0500000000000000 6175783a68".replace(" ", "")
)
# The beginning, up to the shape, of {"a": 3 x 3 identity as mx.nd.sparse.csr_matrix}.
CSR = struct.pack("<IiI2qI2q", 0xF993FAC9, 2, 1, 3, 0, 2, 3, 3)
ARRAYS = {
    "arg:conv1_weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "aux:bn_moving_var": np.array([0.5, 2.0], dtype=np.float16),
}


@pytest.fixture
def read(tmp_path):
    """read(content): the arrays of a file with that content."""

    def read(content):
        path = tmp_path / "net-0000.params"
        path.write_bytes(content)
        return read_mxnet_params(path)

    return read


def assert_same(read, arrays):
    assert list(read) == list(arrays)
    for name, value in arrays.items():
        expected = torch.from_numpy(np.asarray(value))
        assert read[name].dtype == expected.dtype and torch.equal(read[name], expected)


def test_a_file_of_mxnet(read):
    arrays = {
        "arg:w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "aux:h": np.array([1, 2], dtype=np.float16),
    }
    assert_same(read(BY_MXNET), arrays)
    assert file_bytes(arrays) == BY_MXNET  # so the writer of the other tests is right


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_layout(read, version):
    assert_same(read(file_bytes(ARRAYS, version)), ARRAYS)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool", "int16"]
)
def test_every_type(read, dtype):
    arrays = {"arg:x": np.array([[0, 1], [1, 0]], dtype=dtype)}
    assert_same(read(file_bytes(arrays)), arrays)


def test_bfloat16(read):
    value = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    content = file_bytes({"x": value.view(torch.int16).numpy()})
    kind = content.index(struct.pack("<iii", 1, 0, 8)) + 8
    content = content[:kind] + struct.pack("<i", 12) + content[kind + 4 :]
    assert torch.equal(read(content)["x"], value)


def test_scalars_and_empty_arrays(read):
    """Only version 3 can tell a scalar from an array without values."""
    arrays = {"scalar": np.float32(3), "empty": np.zeros((0, 3), dtype=np.float32)}
    assert_same(read(file_bytes(arrays, version=3)), arrays)
    with pytest.raises(FileFormatError, match="array 0 of 1 has no values"):
        read(file_bytes({"none": np.float32(3)}, version=2))
    none = struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FACA, 0, -1)
    with pytest.raises(FileFormatError, match="array 0 of 1 has no values"):
        read(none + struct.pack("<QQ", 1, 1) + b"a")


def test_a_file_without_arrays(read):
    assert read(file_bytes({})) == {}


def test_arrays_are_writable(read):
    read(file_bytes(ARRAYS))["arg:conv1_weight"].zero_()


def test_read_weights_knows_the_format(tmp_path):
    path = tmp_path / "net.params"
    path.write_bytes(file_bytes(ARRAYS))
    assert_same(read_weights(path), ARRAYS)


# ---- Malformed files -----------------------------------------------------------------------------


def one_array(content: bytes) -> bytes:
    return struct.pack("<QQQ", 0x112, 0, 1) + content + struct.pack("<QQ", 1, 1) + b"a"


def with_shape(*shape, version=2):
    good = array_bytes(np.zeros(len(shape) * (1,), dtype=np.float32), version)
    old = struct.pack(f"<{len(shape)}q", *[1] * len(shape))
    return one_array(good.replace(old, struct.pack(f"<{len(shape)}q", *shape), 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header takes 16 bytes, but 0 are left"),
        (b"PK\3\4" + bytes(60), "begins with"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "arrays do not fit"),
        (one_array(CSR), "sparse .csr."),
        (one_array(struct.pack("<Ii", 0xF993FAC9, 1)), "sparse .row_sparse."),
        (one_array(struct.pack("<Ii", 0xF993FAC9, 7)), "storage type 7"),
        (one_array(struct.pack("<IiI", 0xF993FAC9, 0, 2**31 - 1)), "2147483647 dimensions"),
        (one_array(struct.pack("<IiI", 0xF993FAC9, 0, 2**32 - 5)), "-5 dimensions"),
        (one_array(struct.pack("<I", 33) + bytes(200)), "33 dimensions"),
        (with_shape(2**40, 2**40, 2**40), "impossible shape"),
        (with_shape(2**62, 0), "impossible shape"),
        (with_shape(2**20, 2**20), "takes 4398046511104 bytes, but"),
        (with_shape(-1, -4), "impossible shape"),
        (file_bytes({"a": np.ones(2)}).replace(struct.pack("<iii", 1, 0, 1), bytes(11) + b"\x09"),
         "is of type 150994944"),
        (file_bytes({"a": np.array([0, 1], dtype=bool)}).replace(b"\0\1\1\0\0\0", b"\0\2\1\0\0\0"),
         "bytes other than 0 and 1"),
        (file_bytes({"a": np.ones(1)}) + b"!", "1 bytes follow the last name"),
        (file_bytes({"a": np.ones(1)})[:-17] + bytes(8), "1 arrays and 0 names"),
        (file_bytes({"a": np.ones(1), "b": np.ones(1)})[:-1] + b"a", "'a' occurs more"),
        (file_bytes({"a": np.ones(1)})[:-1] + b"\xff", "not UTF-8"),
        (file_bytes({"a": np.ones(1)})[:-9] + struct.pack("<Q", 2**63) + b"a", "name takes 9223"),
        (file_bytes({"a": np.ones(1)})[:-17] + struct.pack("<Q", 2**61), "names do not fit"),
    ],
)  # fmt: skip
def test_a_wrong_file_says_what_is_wrong(read, content, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        read(content)
    assert "net-0000.params" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_a_file_truncated_anywhere(read, version):
    content = file_bytes(ARRAYS, version)
    for size in range(len(content)):
        with pytest.raises(FileFormatError):
            read(content[:size])


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_flipped_bit(read, version):
    """A flipped bit changes values or names, or raises FileFormatError; memory use stays low."""
    content = file_bytes({"a": np.ones((1, 2), dtype=np.float16), "b": np.ones(1)}, version)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read(bytes(damaged))
        except FileFormatError:
            refused += 1
        else:
            assert len(found) == 2
    assert refused > 8 * 40  # headers, counts, shapes, lengths
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_random_bytes_after_the_header(read):
    generator = np.random.default_rng(0)
    for _ in range(300):
        noise = generator.integers(0, 256, generator.integers(0, 200), dtype=np.uint8).tobytes()
        with pytest.raises(FileFormatError):
            read(struct.pack("<QQQ", 0x112, 0, 1) + noise)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_mxnet_params(tmp_path / "absent.params")
