import hashlib

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from d2_deformable.checkpoint import StrictCheckpointer, export_checkpoint
from d2_deformable.cli.main import main


@pytest.fixture
def network():
    """A convolution and a batch normalisation with running statistics that float16 cannot hold."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    network[1].running_var.copy_(torch.logspace(-9, 6, 8))
    network[1].num_batches_tracked.fill_(100_000)
    return network


@pytest.fixture
def trained(network, tmp_path):
    """A checkpoint as training writes it: weights, optimizer and iteration."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(network, str(tmp_path), optimizer=optimizer).save("model", iteration=7)
    return tmp_path / "model.pth"


def test_weights_become_half_and_the_rest_is_dropped(trained, network, tmp_path):
    export_checkpoint(trained, tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(content) == ["model"]
    assert {name: value.dtype for name, value in content["model"].items()} == {
        "0.weight": torch.float16,
        "0.bias": torch.float16,
        "1.weight": torch.float16,
        "1.bias": torch.float16,
        "1.running_mean": torch.float32,
        "1.running_var": torch.float32,
        "1.num_batches_tracked": torch.int64,
    }


def test_loads_into_a_float32_model_as_float32(trained, network, tmp_path):
    export_checkpoint(trained, tmp_path / "out.pth")
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for p in network.parameters():
        nn.init.zeros_(p)
    network[1].reset_running_stats()
    StrictCheckpointer(network).load(str(tmp_path / "out.pth"))
    for name, value in network.state_dict().items():
        assert value.dtype == expected[name].dtype
        # Half a unit in the last place of float16; for tiny numbers, its smallest step.
        rtol, atol = (0, 0) if name.startswith("1.r") else (2**-11, 2**-25)
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol)


def test_a_weight_beyond_float16_stays_float32(trained, tmp_path):
    content = torch.load(trained)
    content["model"]["0.bias"][3] = 1e5
    torch.save(content, trained)
    export_checkpoint(trained, tmp_path / "out.pth")
    exported = torch.load(tmp_path / "out.pth")["model"]
    assert exported["0.bias"].dtype == torch.float32 and exported["0.bias"][3] == 1e5
    assert exported["0.weight"].dtype == torch.float16


def test_equal_weights_give_equal_bytes(trained, tmp_path):
    for name in ("a.pth", "b.pth"):
        export_checkpoint(trained, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_view_does_not_take_its_whole_storage_along(tmp_path):
    running_mean = torch.zeros(100_000)[:2]
    torch.save({"model": {"running_mean": running_mean}}, tmp_path / "model.pth")
    export_checkpoint(tmp_path / "model.pth", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").stat().st_size < 10_000


def test_refuses_what_is_not_finite(trained, tmp_path):
    content = torch.load(trained)
    content["model"]["0.bias"][3] = float("nan")
    torch.save(content, trained)
    with pytest.raises(ValueError, match="1 tensor not finite, the first: 0.bias"):
        export_checkpoint(trained, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", {"state_dict": {}}, [1, 2]])
def test_refuses_what_is_no_checkpoint(content, tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match="model.pth (is not a weights file|holds)"):
        export_checkpoint(file, tmp_path / "out.pth")


def test_the_command_prints_the_sha256(trained, tmp_path, capsys):
    out = tmp_path / "out.pth"
    main(["export", "weights", str(trained), str(out)])
    assert capsys.readouterr().out == f"{hashlib.sha256(out.read_bytes()).hexdigest()}  {out}\n"


def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match="^d2-deformable export weights: .*model.pth"):
        main(["export", "weights", str(tmp_path / "model.pth"), str(tmp_path / "out.pth")])
