"""All deformable layers return their predictions through one child module, where hooks see them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from d2_deformable.layers import (
    DeformConv2d,
    DeformRoIAlign,
    DeformRoIPool,
    ModulatedDeformRoIPool,
    OffsetOutput,
    OffsetPrediction,
    PSRoIPredictor,
)

ROIS = torch.tensor([[0, 0.0, 0, 40, 48], [1, 8, 3, 50, 40]])
NAMES = {
    "DeformConv2d": {"weight", "bias", "conv_offset.weight", "conv_offset.bias"},
    "DeformRoIPool": {"offset_fc.weight", "offset_fc.bias"},
    "ModulatedDeformRoIPool": {
        f"offset_fc.{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")
    },
    "DeformRoIAlign": {
        f"{fc}.{layer}.{name}"
        for fc, numbers in (("offset_fc", (0, 2, 4)), ("mask_fc", (0, 2)))
        for layer in numbers
        for name in ("weight", "bias")
    },
    "PSRoIPredictor": {
        f"{maps}.{name}" for maps in ("score_maps", "offset_maps") for name in ("weight", "bias")
    },
    "modulated PSRoIPredictor": {
        f"{maps}.{name}" for maps in ("score_maps", "offset_maps") for name in ("weight", "bias")
    },
}


def make(name):
    """A layer whose offsets are not zero, and the arguments of a call to it."""
    layer, rois = {
        "DeformConv2d": (DeformConv2d(4, 4, 3, padding=1, modulated=True), ()),
        "DeformRoIPool": (DeformRoIPool(4, 2), (ROIS, 0.25)),
        "ModulatedDeformRoIPool": (ModulatedDeformRoIPool(4, 2, hidden_channels=5), (ROIS, 0.25)),
        "DeformRoIAlign": (
            DeformRoIAlign(4, 2, hidden_channels=5, modulated=True, sampling_ratio=2),
            (ROIS, 0.25),
        ),
        "PSRoIPredictor": (PSRoIPredictor(4, 3, 2, spatial_scale=0.25, offset_classes=3), (ROIS,)),
        "modulated PSRoIPredictor": (
            PSRoIPredictor(4, 6, 2, spatial_scale=0.25, offset_classes=3, modulated=True),
            (ROIS,),
        ),
    }[name]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer, (torch.randn(2, 4, 12, 13), *rois)


LAYERS = pytest.mark.parametrize("name", NAMES)


def watched(layer, arguments):
    """(output, predictions that a hook saw)."""
    seen = []
    hook = layer.offset_prediction.register_forward_hook(
        lambda module, args, prediction: seen.append((args, prediction))
    )
    output = layer(*arguments)
    hook.remove()
    return output, seen


@LAYERS
def test_a_hook_sees_the_prediction_once(name):
    layer, arguments = make(name)
    _, [(args, prediction)] = watched(layer, arguments)
    assert isinstance(prediction, OffsetPrediction)
    expected = layer.predict_offsets(*arguments)
    assert prediction.offset.any() and torch.equal(prediction.offset, expected.offset)
    assert (prediction.mask is None) == (name in ("DeformRoIPool", "PSRoIPredictor"))
    assert args[2] is arguments[0]
    if name != "DeformConv2d":
        assert args[3] is ROIS and args[4] == 0.25


@LAYERS
def test_the_layer_uses_what_a_hook_returns(name):
    layer, arguments = make(name)
    before = layer(*arguments)

    def moved(module, args, prediction):
        return prediction._replace(offset=prediction.offset + 0.5)

    hook = layer.offset_prediction.register_forward_hook(moved)
    assert not torch.allclose(layer(*arguments), before)
    hook.remove()
    assert torch.equal(layer(*arguments), before)


@LAYERS
def test_it_adds_nothing_to_the_state(name):
    layer, _ = make(name)
    assert isinstance(layer.offset_prediction, OffsetOutput)
    assert set(layer.state_dict()) == NAMES[name]


def test_plain_pooling_predicts_nothing():
    assert not hasattr(PSRoIPredictor(4, 3, 2, spatial_scale=0.25), "offset_prediction")


@LAYERS
def test_copies_and_pickles(name):
    layer, arguments = make(name)
    expected = layer(*arguments)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        output, [_] = watched(twin, arguments)
        assert torch.equal(output, expected)


@LAYERS
def test_compiles_with_a_hook(name):
    layer, arguments = make(name)
    torch._dynamo.reset()
    means = []
    layer.offset_prediction.register_forward_hook(
        lambda module, args, prediction: means.append(prediction.offset.mean())
    )
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), layer(*arguments))
    torch.testing.assert_close(*means)


@LAYERS
@pytest.mark.filterwarnings("ignore")
def test_exports_and_traces(name):
    layer, arguments = make(name)
    layer.requires_grad_(False)
    expected = layer(*arguments)
    program = torch.export.export(layer, arguments).module()
    torch.testing.assert_close(program(*arguments), expected)

    class TensorsOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *tensors):
            return self.layer(*tensors, *arguments[len(tensors) :])

    tensors = tuple(a for a in arguments if isinstance(a, torch.Tensor))
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(TensorsOnly(), tensors), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(*tensors), expected)
