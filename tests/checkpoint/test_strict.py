import pickle

import pytest
import torch
from torch import nn

from d2_deformable.checkpoint import StrictCheckpointer


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"weight": (2, 3)}, r"1 not in the file \(bias\)"),
        ({"weight": (2, 3), "bias": (2,), "mask": (1,)}, r"1 not in the model \(mask\)"),
        (
            {"weight": (5, 3), "bias": (5,)},
            r"2 of another shape \(weight: \(5, 3\), here \(2, 3\)\)",
        ),
    ],
)
def test_refuses_another_network(saved, message, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": {name: torch.zeros(shape) for name, shape in saved.items()}}, file)
    with pytest.raises(ValueError, match=f"model.pth is from another network, .*{message}"):
        StrictCheckpointer(nn.Linear(3, 2)).load(str(file))


@pytest.mark.parametrize("name", ["model.pth", "model.pkl"])
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2], 2), pickle.dumps("x", 2)])
def test_refuses_what_is_no_checkpoint(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is not a weights file|holds a)[^\n]+$"):
        StrictCheckpointer(nn.Linear(3, 2)).load(str(tmp_path / name))


def test_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth: no such checkpoint"):
        StrictCheckpointer(nn.Linear(3, 2)).load(str(tmp_path / "gone.pth"))


def test_loads_what_fits(tmp_path):
    file = tmp_path / "model.pth"
    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4)}
    torch.save({"model": {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | anchors}, file)
    layer = nn.Linear(3, 2)
    StrictCheckpointer(layer).load(str(file))
    assert (layer.weight == 1).all() and (layer.bias == 1).all()


def test_infinity_is_allowed_in_buffers_alone(tmp_path):
    layer, file = nn.Linear(2, 2), str(tmp_path / "model.pth")
    layer.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    torch.save(layer.state_dict(), file)
    StrictCheckpointer(layer).load(file)
    torch.save(layer.state_dict() | {"bias": torch.tensor([0.0, float("inf")])}, file)
    with pytest.raises(ValueError, match="model.pth: bias is NaN or infinite"):
        StrictCheckpointer(layer).load(file)
