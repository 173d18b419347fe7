"""Under torch.autocast layers predict their offsets in float32, whatever the input type."""

import pytest
import torch

from d2_deformable.layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor

ROIS = torch.tensor([[0, 1.5, 2, 40, 50], [1, 0, 0, 60, 30]])


def layers() -> dict:
    """Each layer with its further arguments; offset layers are random, not zero."""
    layers = {
        "DeformConv2d": (DeformConv2d(8, 6, 3, padding=1), ()),
        "modulated": (DeformConv2d(8, 6, 3, padding=1, modulated=True), ()),
        "DeformRoIPool": (DeformRoIPool(8, 3), (ROIS, 0.25)),
        "DeformRoIAlign": (DeformRoIAlign(8, 3, hidden_channels=8), (ROIS, 0.25)),
        "DeformRoIAlign modulated": (
            DeformRoIAlign(8, 3, hidden_channels=8, modulated=True),
            (ROIS, 0.25),
        ),
        "PSRoIPredictor": (PSRoIPredictor(8, 4, 3, spatial_scale=0.25, offset_classes=4), (ROIS,)),
    }
    for layer, _ in layers.values():
        for name, parameter in layer.named_parameters():
            if "offset" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return layers


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_input", [False, True], ids=["float32 in", "half in"])
def test_offsets_are_those_of_float32(name, dtype, half_input, device):
    layer, arguments = layers()[name]
    layer = layer.to(device)
    arguments = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
    x = torch.randn(2, 8, 13, 16, device=device).to(dtype)
    full = layer.predict_offsets(x.float(), *arguments)
    with torch.autocast(device.type, dtype=dtype):
        offsets = layer.predict_offsets(x if half_input else x.float(), *arguments)
        output = layer(x if half_input else x.float(), *arguments)
    # Pooling may use a half-precision map directly, and rounds its result.
    tolerance = 0.05 if name.startswith("DeformRoI") and half_input else 1e-5
    for mine, expected in zip(offsets, full, strict=True):
        if expected is None:
            continue
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert output.isfinite().all()


def test_whole_layer_in_half_precision(device):
    """Outside autocast a layer has one type throughout, including its offsets."""
    layer = DeformConv2d(8, 6, 3, padding=1).to(device, torch.bfloat16)
    assert layer(torch.randn(1, 8, 5, 6, device=device).bfloat16()).dtype == torch.bfloat16
