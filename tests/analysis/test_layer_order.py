import torch
from torch import nn

from d2_deformable.analysis.layer_order import layers_below
from d2_deformable.analysis.record import inspect_image
from d2_deformable.layers import DeformConv2d


def conv():
    return DeformConv2d(4, 4, 3, padding=1)


class Inception(nn.Module):
    """A shortcut and two branches: one has a single layer, the other two."""

    def __init__(self):
        super().__init__()
        self.a, self.b1, self.b2 = conv(), conv(), conv()
        self.expand = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        branches = torch.cat([self.a(x), self.b2(self.b1(x).relu_())], dim=1)
        return (x + self.expand(branches.relu_())).relu_()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Inception(), Inception())

    def forward(self, batch):
        self.backbone(torch.stack([inputs["image"] for inputs in batch]))
        return [{}]


def test_parallel_branches_are_not_stacked():
    net = Inception()
    layers = {name: getattr(net, name) for name in ("a", "b1", "b2")}
    below = layers_below(net, layers, torch.rand(1, 4, 8, 8))
    assert below == {"a": set(), "b1": set(), "b2": {"b1"}}
    assert not any(layer._forward_hooks for layer in layers.values())


def test_sampling_follows_one_path():
    record = inspect_image(Net(), {"image": torch.rand(4, 70, 8)}).record
    assert [c.name for c in record.convs] == [
        f"backbone.{i}.{name}" for i in (0, 1) for name in ("a", "b1", "b2")
    ], "the second pass is not recorded"
    assert record.input_size == (70, 8)
    path = [c.name for c in record.stack(3)]
    assert path == ["backbone.0.b2", "backbone.1.b1", "backbone.1.b2"]
    assert [c.name for c in record.stack(9)] == ["backbone.0.b1", *path]


def test_a_frozen_network_is_followed_too():
    net = Net().requires_grad_(False)
    record = inspect_image(net, {"image": torch.rand(4, 8, 8)}).record
    assert [c.name for c in record.stack(2)] == ["backbone.1.b1", "backbone.1.b2"]
    assert all(p.grad is None for p in net.parameters())
