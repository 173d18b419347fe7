import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2_deformable.analysis.flops import count_macs, count_macs_by_torch
from d2_deformable.layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor
from yamls import CONFIGS, load

GEOMETRY = [
    {"padding": 1},
    {"padding": 2, "dilation": 2},
    {"stride": 2, "bias": False},
    {"groups": 2},
]


class Net(nn.Module):
    """Wrap a layer as a Detectron2 model for one image."""

    def __init__(self, layer, *args):
        super().__init__()
        self.layer = layer
        self.args = args

    def forward(self, batch):
        return [{"sem_seg": self.layer(x["image"][None], *self.args)} for x in batch]


def count_by_both(layer, image, *args):
    model, inputs = Net(layer, *args).eval(), [{"image": image}]
    by_kind = count_macs(model, inputs)
    assert by_kind["total"] == count_macs_by_torch(model, inputs)
    return by_kind


@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("modulated", [False, True])
def test_a_deformable_convolution_costs_a_plain_one_and_its_samples(geometry, modulated):
    image = torch.rand(4, 11, 13)
    plain = count_by_both(nn.Conv2d(4, 6, 3, **geometry), image)
    layer = DeformConv2d(4, 6, 3, offset_groups=2, modulated=modulated, **geometry)
    predictor = count_by_both(layer.conv_offset, image)
    counted = count_by_both(layer, image)
    positions = layer(image[None])[0, 0].numel()
    samples = positions * 9 * 4  # per tap and channel
    assert counted["convolutions"] == predictor["convolutions"]
    deformable = counted["deformable convolutions"]
    assert deformable == plain["convolutions"] + samples * (5 if modulated else 4)
    assert plain["convolutions"] == positions * 6 * 9 * 4 // geometry.get("groups", 1)


def test_roi_pooling_costs_its_samples():
    rois = torch.tensor([[0, 0, 0, 40.0, 40], [0, 8, 8, 30, 30], [0, 0, 8, 20, 30]])
    layer = DeformRoIPool(4, 2, samples_per_part=3)
    counted = count_by_both(layer, torch.rand(4, 8, 8), rois, 1 / 8)
    one_pooling = 3 * 4 * (2 * 2) * 3**2 * 4
    assert counted["deformable RoI pooling"] == 2 * one_pooling  # predicts, then pools
    assert counted["matrix multiplies"] == 3 * 16 * 8

    layer = PSRoIPredictor(4, 5, 2, spatial_scale=1 / 8, offset_classes=5)
    counted = count_by_both(layer, torch.rand(4, 8, 8), rois)
    per_output = 3 * (2 * 2) * 4**2 * 4
    assert counted["deformable RoI pooling"] == (5 + 10) * per_output
    assert counted["convolutions"] == 64 * 4 * (5 + 10) * 4


def test_roi_align_counts_as_both_counters_have_it():
    """Neither counts RoIAlign, so only the layers of mmdetection's pooling count."""
    rois = torch.tensor([[0, 0, 0, 40.0, 40], [0, 8, 8, 30, 30]])
    layer = DeformRoIAlign(4, 2, hidden_channels=5)
    counted = count_by_both(layer, torch.rand(4, 8, 8), rois, 1 / 8)
    expected = 2 * (16 * 5 + 5 * 5 + 5 * 8)
    assert counted == {"matrix multiplies": expected, "total": expected}


def test_training_counts_too():
    layer = DeformConv2d(4, 6, 3, padding=1)
    pool = DeformRoIPool(6, 2)
    with FlopCounterMode(display=False) as forward:
        y = pool(layer(torch.rand(1, 4, 8, 8)), torch.tensor([[0, 0, 0, 8.0, 8]]), 1.0)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    ops = torch.ops.d2_deformable
    forward, backward = (c.get_flop_counts()["Global"] for c in (forward, backward))
    conv, samples = 64 * 6 * 4 * 9, 64 * 4 * 9 * 4
    assert forward[ops.deform_conv2d] == 2 * (conv + samples)
    assert backward[ops.deform_conv2d_backward] == 2 * (2 * conv + 3 * samples)
    one_pooling = 2 * 6 * 4 * 16 * 4
    assert forward[ops.deform_roi_pool] == 2 * one_pooling
    # Pooling with offsets costs twice as much; the pooling that predicts them has no offset
    # gradient.
    assert backward[ops.deform_roi_pool_backward] == 3 * one_pooling


@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn_R_18_dconv3_dpool",
        "rfcn_R_18_dconv3_dpool",
        "rfcn_AIR_dconv3_dpool",
        "class_aware_rpn_R_18_dconv3",
        "deeplab_R_18_dconv3",
    ],
)
def test_both_counters_agree_on_a_network(name):
    cfg = load(CONFIGS / f"quick/warped_shapes_{name}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    if cfg.MODEL.RESNETS.REDUCED_CHANNELS:
        cfg.MODEL.RESNETS.REDUCED_CHANNELS = 16
    model = build_model(cfg).eval()
    inputs = [{"image": torch.rand(3, 64, 96) * 255, "height": 64, "width": 96}]
    by_kind = count_macs(model, inputs)
    assert by_kind["total"] == count_macs_by_torch(model, inputs)
    kinds = {"convolutions", "deformable convolutions"}
    kinds |= {"deformable RoI pooling"} if "dpool" in name else set()
    assert kinds <= set(by_kind)
