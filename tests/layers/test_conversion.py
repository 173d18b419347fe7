"""Convolutions of any module tree become deformable, in place."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn.utils import parametrizations

from d2_deformable.layers import DeformConv2d, deform_convs, deform_modules, kernel_convs


class Listed(nn.Module):
    """Its forward reads a list, as Detectron2's FPN does, and calls one layer on two maps."""

    def __init__(self, *convs):
        super().__init__()
        self.convs = list(convs)
        for i, conv in enumerate(convs):
            self.add_module(f"conv{i}", conv)
        self.again = convs[-1]

    def forward(self, x):
        for conv in self.convs:
            x = conv(x)
        return self.again(x) + self.again(x[..., :5, :5]).mean()


def conv(*args, **kwargs):
    return nn.Conv2d(4, 4, *args or (3,), **({"padding": 1} | kwargs))


def deformable(net):
    return [name for name, m in net.named_modules() if isinstance(m, DeformConv2d)]


def move(net):
    for module in net.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.3)


def test_lists_and_shared_modules_see_the_change():
    net = Listed(conv(), conv()).double()
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    before, calls = net(x), []
    net.conv1.register_forward_hook(lambda *_: calls.append(1))
    assert deform_modules(net, [["conv[01]", {"groups": 2}]]) is net
    assert deformable(net) == ["conv0", "conv1"] and net.convs == [net.conv0, net.conv1]
    assert net.again is net.conv1
    torch.testing.assert_close(net(x), before)
    assert len(calls) == 3, "hooks stay"
    for name in ("conv0", "conv1"):
        twin = copy.deepcopy(net)
        move(getattr(twin, name))
        twin.convs, twin.again = [twin.conv0, twin.conv1], twin.conv1
        assert not torch.allclose(twin(x), before), name


def test_another_name_of_a_shared_module():
    net = Listed(conv(), conv())
    deform_modules(net, [["again"]])
    assert isinstance(net.conv1, DeformConv2d) and not isinstance(net.conv0, DeformConv2d)


@pytest.mark.parametrize(
    "layer",
    [
        conv(stride=2),
        conv(dilation=2, padding=2),
        conv(groups=2, bias=False),
        conv(groups=4),
        conv((1, 3), padding=(0, 1)),
        conv(5, padding=2),
        conv(2, stride=2, padding=0),
        Conv2d(4, 4, 3, padding=1, norm=nn.BatchNorm2d(4), activation=nn.functional.relu),
        Conv2d(4, 4, 3, padding=1, norm=nn.GroupNorm(2, 4), activation=nn.ReLU()),
        Conv2d(4, 4, 3, padding=1, norm=nn.SyncBatchNorm(4)),
    ],
    ids=lambda layer: str(layer).replace("\n", "")[:60],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2, "modulated": True, "border": "legacy", "clamp": 3}],
    ids=["plain", "options"],
)
def test_every_kind_of_layer_starts_as_it_was(layer, options):
    net = nn.Sequential(copy.deepcopy(layer)).double().eval()
    x, names = torch.randn(2, 4, 8, 9, dtype=torch.float64), set(net.state_dict())
    expected = net(x)
    deform_modules(net, [["0", options]])
    torch.testing.assert_close(net(x), expected)
    assert set(net.state_dict()) - names == {"0.conv_offset.weight", "0.conv_offset.bias"}
    assert [n for n, _ in net[0].named_children() if "offset" not in n] == [
        n for n, _ in layer.named_children()
    ]
    move(net)
    assert not torch.allclose(net(x), expected)


def test_options_reach_the_layer():
    net = nn.ModuleDict({"a": conv(), "b": conv()})
    options = {"groups": 4, "modulated": True, "border": "legacy", "clamp": 2.5}
    deform_modules(net, [["a", options | {"offset_dilation": 2}], [".", {"groups": 1}]])
    assert (net.a.offset_groups, net.b.offset_groups) == (4, 1), "the first match decides"
    assert (net.a.modulated, net.a.border, net.a.max_offset) == (True, "legacy", 2.5)
    assert net.a.conv_offset.dilation == (2, 2)
    assert (net.b.modulated, net.b.border, net.b.max_offset) == (False, "zero", 0)


def test_one_by_one_and_transposed_convolutions_stay():
    net = nn.Sequential(conv(1, padding=0), conv(), nn.ConvTranspose2d(4, 4, 2), nn.Conv1d(4, 4, 3))
    deform_modules(net, [["."]])
    assert deformable(net) == ["1"]


def test_offset_layers_of_other_libraries_stay():
    net = nn.ModuleDict({"conv2_offset": conv(), "conv2": nn.Identity(), "box_offset": conv()})
    assert list(kernel_convs(net)) == ["box_offset"]


def test_frozen_weights_stay_frozen_and_offsets_learn():
    net = nn.Sequential(conv()).requires_grad_(False)
    deform_modules(net, [["0"]])
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        "0.conv_offset.weight",
        "0.conv_offset.bias",
    }


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Shifted(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x + 1, weight, bias)


def patched():
    layer = conv()
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Standardised(4, 4, 3), "0: .* got a Standardised with a forward of its own"),
        (Shifted(4, 4, 3), "0: .* got a Shifted with a forward of its own"),
        (patched(), "0: .* got a Conv2d with a forward of its own"),
        (parametrizations.weight_norm(conv()), "0: .* whose weight is computed"),
        (nn.utils.spectral_norm(conv()), "0: .* whose weight is computed"),
        (nn.LazyConv2d(4, 3), "0: .* not known yet"),
        (conv(padding_mode="reflect"), "0: DeformConv2d takes numeric zero padding"),
        (conv(padding="same"), "0: DeformConv2d takes numeric zero padding"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")  # spectral_norm is deprecated, lazy modules are experimental
def test_what_has_no_twin_is_named(layer, message):
    with pytest.raises(ValueError, match=f"^MODEL.DEFORM_MODULES: '0' matches {message}"):
        deform_modules(nn.Sequential(layer), [["0"]])
    with pytest.raises(ValueError, match=f"^{message}"):
        deform_convs(nn.Sequential(layer), ["0"])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([["mask_haed"]], "'mask_haed' matches no .* the nearest names are mask_head, box.head"),
        ([["predictor"]], "'predictor' .* only others such as predictor .Conv2d with kernel .1, 1"),
        ([["up"]], "'up' .* only others such as up .ConvTranspose2d with kernel .2, 2"),
        ([["head"], ["mask"]], "'mask' matches only .* deformable already, e.g. mask_head"),
        ([["mask", {"groups": 3}]], "'mask' matches mask_head: offset_groups=3 does not divide"),
        (
            [["mask", {"clamp": -1}]],
            r"holds \['mask', .* .clamp is -1; expected a finite number, 0",
        ),
        ([["mask", {"border": "same"}]], "'mask' matches mask_head: border is 'same'"),
        ([["mask", {"offset_dilation": -3}]], "offset_dilation is -3; expected a finite number, 0"),
        ([["mask", {"groups": 0}]], "groups is 0; expected a finite number, 1 or more"),
        ([["mask", {"clamp": float("nan")}]], "clamp is nan; expected a finite number"),
        ([["mask", {"group": 4}]], "'group' is no option; choose from groups, modulated, bord"),
        ([["mask", {"groups": "4"}]], "groups is '4', a str, not int"),
        ([["mask", {"groups": True}]], "groups is True, a bool, not int"),
        ([["mask", {"modulated": 1}]], "modulated is 1, a int, not bool"),
        ([["mask", {"clamp": True}]], "clamp is True, a bool, not float"),
        ([["mask", 4]], "options are no mapping"),
        ([["mask", {}, {}]], "not a list of one or two"),
        (["mask"], "'mask' .not a list of one or two.; expected .regex. or .regex, options."),
        ([["(", {}]], "missing \\), unterminated"),
        ([[3, {}]], r"holds \[3, {}\] "),
        ([[]], "holds "),
    ],
)
def test_a_wrong_entry_says_what_to_do(modules, message):
    net = nn.ModuleDict(
        {
            "mask_head": conv(),
            "box": nn.ModuleDict({"head": conv()}),
            "predictor": conv(1, padding=0),
            "up": nn.ConvTranspose2d(4, 4, 2),
        }
    )
    with pytest.raises(ValueError, match=f"^MODEL.DEFORM_MODULES.*{message}"):
        deform_modules(net, modules)
