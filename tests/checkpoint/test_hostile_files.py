"""Hundreds of damaged, wrong and hostile files: each gives a one-sentence error, runs nothing and
leaves nothing behind."""

import pickle
import resource

import numpy as np
import pytest
import torch
from checkpoint import hostile

from d2_deformable.checkpoint import FileFormatError, StrictCheckpointer, read_weights


@pytest.fixture
def refuse(tmp_path):
    """refuse(name, data) checks that a file is refused; with `may_pass` it may give weights.

    It returns whether the file was refused.
    """

    def refuse(name, data, may_pass=False):
        file = tmp_path / "input" / f"{name}.pth"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        refused = False
        try:
            weights = read_weights(file)
        except FileFormatError as error:
            refused, message = True, str(error)
            assert message.startswith(str(file)) and message.isprintable(), message
            assert len(message) < len(str(file)) + 400, message
        else:
            assert may_pass, f"{name} is read as {weights}"
            assert all(isinstance(value, torch.Tensor) for value in weights.values())
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        file.unlink()
        return refused

    return refuse


@pytest.fixture
def bounded():
    """The memory of this process must not grow by more than 300 MiB while a test runs."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_the_good_files_are_read(tmp_path):
    for name, data in hostile.good_files().items():
        (tmp_path / name).write_bytes(data)
        read = read_weights(tmp_path / name)
        assert all(torch.equal(read[k], value) for k, value in hostile.WEIGHTS.items()), name
    record = [("0", torch.tensor([1.0, 2]).numpy().tobytes())]
    (tmp_path / "a").write_bytes(hostile.as_torch(hostile.tensor(), True, record))
    assert read_weights(tmp_path / "a")["a"].tolist() == [1, 2]


def test_truncated(refuse, bounded):
    for name, data in hostile.truncated(40).items():
        refuse(name, data)


def test_flipped_bits(refuse, bounded):
    """In formats without checksums some flips only change numbers."""
    flipped = hostile.flipped(60)
    refused = [refuse(name, data, may_pass=True) for name, data in flipped.items()]
    assert len(flipped) / 4 < sum(refused) < len(flipped)


def test_flipped_weights_of_an_archive(refuse):
    data = bytearray(hostile.good_files()["zip"])
    data[data.index(hostile.WEIGHTS["conv1.weight"].numpy().tobytes()) + 5] ^= 1
    refuse("flipped", bytes(data))


def test_noise(refuse, bounded):
    for name, data in hostile.noise(200).items():
        refuse(name, data)


@pytest.mark.parametrize("layout", ["pickle", "zip", "legacy"])
def test_programs(refuse, bounded, tmp_path, layout):
    sign = tmp_path / "sign"
    for name, data in hostile.programs(sign).items():
        if layout != "pickle":
            data = hostile.as_torch(data, layout == "zip")
        # In the legacy layout another pickle follows.
        refuse(name, data, may_pass=layout == "legacy" and name == "no_end")
        assert not sign.exists(), name


def test_inconsistent_files(refuse, bounded):
    for name, data in hostile.inconsistent().items():
        refuse(name, data)


def test_odd_state_dicts(refuse, tmp_path):
    network = torch.nn.BatchNorm2d(2)  # reads its version
    for name, data in hostile.odd_state_dicts().items():
        refuse(name, data)
        (tmp_path / "model.pth").write_bytes(data)
        with pytest.raises(FileFormatError, match="model.pth "):
            StrictCheckpointer(network).load(str(tmp_path / "model.pth"))


def test_messages_are_short_and_weights_finite(tmp_path):
    network, file = torch.nn.BatchNorm2d(2), str(tmp_path / "model.pth")
    torch.save({"a" * 10**6: torch.ones(2)}, file)
    with pytest.raises(ValueError, match="from another network") as error:
        StrictCheckpointer(network).load(file)
    assert len(str(error.value)) < 1000
    torch.save(network.state_dict() | {"running_var": torch.tensor([1.0, float("nan")])}, file)
    with pytest.raises(ValueError, match="model.pth: running_var is NaN or infinite, so"):
        StrictCheckpointer(network).load(file)


def test_one_array_under_many_names(refuse, bounded):
    array = np.zeros(2**14, np.float32)
    data = pickle.dumps({f"a{i}": array for i in range(10_000)})
    refuse("many_names", data, may_pass=True)


def test_other_files(refuse):
    for name, data in hostile.others().items():
        refuse(name, data)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(FileFormatError, match=f"{tmp_path} is a folder"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        read_weights(tmp_path / "gone.pth")


def test_weights_of_the_config_are_not_run(tmp_path):
    sign = tmp_path / "sign"
    file = tmp_path / "model.pkl"
    for data in hostile.programs(sign).values():
        file.write_bytes(data)
        with pytest.raises(ValueError, match="model.pkl "):
            StrictCheckpointer(torch.nn.Linear(3, 2)).load(str(file))
        assert not sign.exists()
