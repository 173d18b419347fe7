import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from d2_deformable.layers import DeformConv2d


def plain_conv(**kwargs):
    torch.manual_seed(0)
    conv = Conv2d(4, 6, 3, norm=nn.BatchNorm2d(6), activation=nn.functional.relu, **kwargs)
    nn.init.normal_(conv.norm.weight)
    return conv.double().eval()


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "stride": 2},
        {"padding": (2, 1), "stride": (1, 2), "dilation": (2, 1)},
        {"padding": 1, "groups": 2, "bias": False},
    ],
)
def test_equals_the_plain_convolution_at_the_start(geometry, border, modulated):
    conv = plain_conv(**geometry)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    deform = DeformConv2d.from_conv(
        conv, offset_groups=2, offset_dilation=2, modulated=modulated, border=border
    )
    torch.testing.assert_close(deform(x), conv(x))


def test_offsets_move_the_samples():
    conv = plain_conv(padding=1)
    conv.norm = conv.activation = None
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    deform = DeformConv2d.from_conv(conv)
    with torch.no_grad():
        deform.conv_offset.bias.view(9, 2)[:, 1] = 1.0  # dx = 1: the map shifts left
    torch.testing.assert_close(deform(x)[..., 1:-2], conv(x)[..., 2:-1])


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose2d(4, 4, 3), nn.Linear(4, 4), DeformConv2d(4, 4, 3)]
)
def test_from_conv_refuses_what_is_no_plain_convolution(module):
    with pytest.raises(ValueError, match=f"got a {type(module).__name__}"):
        DeformConv2d.from_conv(module)


@pytest.mark.parametrize("modulated", [False, True])
def test_clamped_offsets_learn_inside_the_bound_only(modulated):
    deform = DeformConv2d(4, 6, 3, padding=1, max_offset=1.5, modulated=modulated)
    with torch.no_grad():
        deform.conv_offset.bias[:4] = torch.tensor([9.0, -9.0, 1.25, -1.25])
        deform.conv_offset.bias[18:] = 9.0
    x = torch.randn(2, 4, 8, 8)
    offset, mask = deform.predict_offsets(x)
    assert offset[0, :4, 0, 0].tolist() == [1.5, -1.5, 1.25, -1.25]
    assert mask is None or (mask > 1.5).all(), "a mask has no bound"
    deform(x).square().sum().backward()
    assert (deform.conv_offset.bias.grad[:4] != 0).tolist() == [False, False, True, True]


def test_from_conv_keeps_parameters_and_their_names():
    conv = plain_conv(padding=1)
    deform = DeformConv2d.from_conv(conv)
    assert deform.weight is conv.weight and deform.bias is conv.bias and deform.norm is conv.norm
    new = set(deform.state_dict()) - set(conv.state_dict())
    assert new == {"conv_offset.weight", "conv_offset.bias"}
    assert deform.conv_offset.weight.dtype == torch.float64


def test_offset_layer_learns_from_the_first_step():
    deform = DeformConv2d(4, 6, 3, padding=1, modulated=True)
    deform(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert deform.conv_offset.weight.grad.abs().sum() > 0


def test_bad_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="offset_groups=3 does not divide the 4 input channels"):
        DeformConv2d(4, 6, 3, offset_groups=3)
    with pytest.raises(ValueError, match="offset_groups=0 does not divide"):
        DeformConv2d(4, 6, 3, offset_groups=0)
    with pytest.raises(ValueError, match="offset_dilation=2 gives another map size than kernel"):
        DeformConv2d(4, 6, 2, offset_dilation=2)
    with pytest.raises(ValueError, match="offset_dilation=1 gives another map size than kernel"):
        DeformConv2d(4, 6, 3, dilation=2, offset_dilation=1)
    with pytest.raises(ValueError, match="max_offset is nan; expected 0 .*DEFORM_OFFSET_CLAMP"):
        DeformConv2d(4, 6, 3, max_offset=float("nan"))
    with pytest.raises(ValueError, match="border is 'same'; expected one of zero, legacy .in a YA"):
        DeformConv2d(4, 6, 3, border="same")
    with pytest.raises(ValueError, match="DeformConv2d: x is a ndarray; expected a torch.Tensor"):
        DeformConv2d(4, 6, 3)(torch.zeros(1, 4, 8, 8).numpy())
    with pytest.raises(ValueError, match="padding='same'"):
        DeformConv2d(4, 6, 3, padding="same")
