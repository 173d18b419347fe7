"""Weight files: every format reads back what was written, and a failure keeps the old file."""

import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from d2_deformable.checkpoint import FileFormatError, files, read_weights, write_weights
from d2_deformable.utils.files import replacing


@pytest.fixture
def weights():
    """A view, an empty tensor, a scalar, several types."""
    return OrderedDict(
        a=torch.randn(3, 4),
        transposed=torch.randn(4, 2).t(),
        half=torch.randn(5).half(),
        count=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
    )


def arrays(weights):
    return {name: value.numpy() for name, value in weights.items()}


def assert_equal(read, weights):
    assert set(read) == set(weights)
    for name, value in weights.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


CONTENTS = {
    "flat": lambda weights: weights,
    "training": lambda weights: {
        "model": weights,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{}]},
        "iteration": 7,
    },
    "state_dict": lambda weights: {"state_dict": weights, "meta": {"CLASSES": ("a", "b")}},
    "arrays": lambda weights: {"model": arrays(weights), "__author__": "Somebody"},
    # Content that weights_only refuses.
    "tensors_and_arrays": lambda weights: {"model": weights, "best": np.float64(3), "b": b"\xff"},
    "parameters": lambda weights: {
        name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_torch_saves(weights, content, zipped, tmp_path):
    file = tmp_path / "weights.any"
    torch.save(CONTENTS[content](weights), file, _use_new_zipfile_serialization=zipped)
    assert files.file_format(file) == ("zip" if zipped else "legacy")
    assert_equal(read_weights(file), weights)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays(weights, protocol, tmp_path):
    content = {
        "model": arrays(weights) | {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
        "__author__": "Detectron2 Model Zoo",
        "swapped": np.arange(3, dtype=">f4"),
        "names": np.array(["a", "bcd"]),
        "scalar": np.float32(2.5),
        "bytes": [b"", b"a\xff", bytearray(b"xy")],
        "text": "ü",
    }
    file = tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    fortran = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    assert_equal(read_weights(file), weights | {"fortran": fortran})
    read = files.read_content(file)
    assert read["swapped"].tolist() == [0, 1, 2] and read["names"].tolist() == ["a", "bcd"]
    assert read["scalar"] == 2.5 and read["bytes"] == content["bytes"] and read["text"] == "ü"


def python2_pickle() -> bytes:
    """{"conv1_w": float32 [[1, 2]], "step": int64 3}, as Python 2 and numpy 1.x wrote it."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\nq\x02K\x00\x85U\x01btR"
    array += b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x03U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff"
    array += b"\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + np.float32([1, 2]).tobytes() + b"tb"
    scalar = b"cnumpy.core.multiarray\nscalar\nh\x03U\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff"
    scalar += b"\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + np.int64(3).tobytes() + b"\x86R"
    return b"\x80\x02}q\x00(U\x07conv1_w" + array + b"U\x04step" + scalar + b"u."


def test_pickles_of_python_2(tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(python2_pickle())
    expected = pickle.loads(file.read_bytes(), encoding="latin1")
    assert expected["conv1_w"].tolist() == [[1, 2]] and expected["step"] == 3, "the pickle is sound"
    read = read_weights(file)
    assert torch.equal(read["conv1_w"], torch.tensor([[1.0, 2]])) and read["step"] == 3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_written_weights_come_back(weights, suffix, tmp_path):
    file = tmp_path / f"weights{suffix}"
    weights |= {"view": torch.zeros(1000, 100)[:2], "tied": weights["a"]}
    write_weights(weights, file, {"made_by": "a test"})
    assert_equal(read_weights(file), weights)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.stat().st_size < 10_000, "the file has the whole storage of a view"
    if suffix == ".pth":
        assert torch.load(file, weights_only=True)["made_by"] == "a test"


def test_what_is_written_does_not_depend_on_the_name(weights, tmp_path):
    for name in ("a.pth", "b.pth"):
        write_weights(weights, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_replaced_at_a_clean_end_only(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as part:
        part.write_text("half of the n")
        assert file.read_text() == "old"
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failing_write_leaves_the_old_file(weights, suffix, tmp_path, monkeypatch):
    file = tmp_path / f"weights{suffix}"
    write_weights(weights, file)
    before = file.read_bytes()

    def full(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_weights({"a": torch.zeros(9)}, file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone/a.pth: there is no folder .*gone"):
        write_weights({}, tmp_path / "gone" / "a.pth")
    with pytest.raises(FileFormatError, match="a.bin: weights are written .*.pth or .safetensors"):
        write_weights({}, tmp_path / "a.bin")
    (tmp_path / "b.pth").mkdir()
    with pytest.raises(FileFormatError, match="b.pth: weights are written to a file"):
        write_weights({}, tmp_path / "b.pth")


class Harmless:
    """A class that only this test module has."""


@pytest.mark.parametrize("saved", ["torch", "pickle"])
def test_trust_reads_anything_with_a_warning(weights, saved, tmp_path):
    file = tmp_path / "weights.pth"
    content = {"state_dict": weights if saved == "torch" else arrays(weights), "log": Harmless()}
    if saved == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(FileFormatError, match=r"weights.pth .*Harmless.*--trust-pickle[^\n]*$"):
        read_weights(file)
    with pytest.warns(UserWarning, match="weights.pth is read by Python's unpickler, which runs"):
        assert_equal(read_weights(file, trust_pickle=True), weights)


def test_trust_is_not_used_where_it_is_not_needed(weights, tmp_path, recwarn):
    write_weights(weights, tmp_path / "weights.pth")
    read_weights(tmp_path / "weights.pth", trust_pickle=True)
    assert not recwarn.list


# ---- Training logs stored with the weights -------------------------------------------------------


class Log:
    """Stub of mmengine's HistoryBuffer: numbers, and functions of its class."""

    def __init__(self):
        self.values = np.arange(3.0)
        self.mean = Log.average

    def average(self):
        raise AssertionError("code of the file ran")


@pytest.fixture
def mmengine(monkeypatch):
    """Make mmengine importable until read(path), which reads a file without it."""
    package = types.ModuleType("mmengine")
    package.Log = Log
    monkeypatch.setitem(sys.modules, "mmengine", package)
    monkeypatch.setattr(Log, "__module__", "mmengine")
    monkeypatch.setattr(Log.average, "__module__", "mmengine")
    monkeypatch.setattr(Log.average, "__qualname__", "Log.average")

    def read(path):
        monkeypatch.delitem(sys.modules, "mmengine")
        return read_weights(path)

    return read


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_of_mmengine_are_skipped(legacy, tmp_path, mmengine):
    content = {"state_dict": {"a": torch.ones(2)}, "message_hub": {"loss": Log()}, "meta": {}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert mmengine(tmp_path / "a.pth")["a"].tolist() == [1, 1]


def test_objects_of_mmengine_are_no_weights(tmp_path, mmengine):
    torch.save({"state_dict": {"a": Log()}}, tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match="holds a _Ignored under a"):
        mmengine(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x03\x00\x00\x00pop\x86R.",
        b"\x80\x02cmmengine\nLog\n)R.",
    ],
    ids=["instance of another class", "attribute of another class", "call"],
)
def test_no_other_object_is_created_inspected_or_called(program, tmp_path):
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(FileFormatError, match="instantiates a|calls something that"):
        read_weights(tmp_path / "a.pkl")
