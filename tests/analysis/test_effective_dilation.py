import math

import pytest
import torch
from detectron2.structures import BoxMode
from torch import nn

from d2_deformable.analysis.effective_dilation import (
    SIZES,
    EffectiveDilation,
    Moments,
    Rules,
    annotated_boxes,
    effective_dilation,
    last_stage_convs,
    leaves_the_map,
    object_sizes,
)
from d2_deformable.analysis.layer_map import filter_centers
from d2_deformable.analysis.record import ConvOffsets
from d2_deformable.layers import DeformConv2d


def conv(dilation=(1, 1), kernel_size=(3, 3), groups=1, size=(6, 7), offset=None):
    taps = kernel_size[0] * kernel_size[1]
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel_size))
    zeros = torch.zeros(groups, taps, 2, *size)
    return ConvOffsets(
        name="conv",
        offset=zeros if offset is None else zeros + offset,
        mask=None,
        input_size=size,
        kernel_size=kernel_size,
        stride=(1, 1),
        padding=padding,
        dilation=dilation,
    )


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2, 4, 6, 8])
def test_zero_offsets_give_the_dilation(dilation, kernel_size):
    values = effective_dilation(conv((dilation, dilation), kernel_size, groups=2))
    assert values.shape == (2, 6, 7)
    assert (values == dilation).all()


def test_mean_over_the_6_horizontal_and_6_vertical_pairs():
    assert (effective_dilation(conv((1, 3))) == 2).all()
    # The centre tap moves by (0, 1): its 4 pairs now have lengths 1, 3, sqrt(5) and sqrt(5).
    offset = torch.zeros(9, 2, 1, 1)
    offset[4, 1] = 1
    expected = (8 * 2 + 1 + 3 + 2 * math.sqrt(5)) / 12
    values = effective_dilation(conv((2, 2), offset=offset))
    torch.testing.assert_close(values, torch.full_like(values, expected))


def test_a_rotated_grid_that_grows_from_filter_to_filter():
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    grid = torch.stack([y, x], dim=-1).flatten(0, 1)
    turned = grid @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    growth = torch.linspace(1, 4, 42).view(6, 7)
    offset = turned[..., None, None] * growth - grid[..., None, None]
    values = effective_dilation(conv(offset=offset))
    torch.testing.assert_close(values[0], growth)


def test_filters_that_leave_the_map():
    leaves = leaves_the_map(conv((2, 2)))[0]
    assert leaves.shape == (6, 7)
    assert not leaves[2:4, 2:5].any()
    assert leaves.sum() == 6 * 7 - 2 * 3
    # A point more than half a cell outside has no nearest cell on the map.
    offset = torch.zeros(9, 2, 1, 1)
    offset[0, 0] = -0.5
    assert not leaves_the_map(conv((2, 2), offset=offset))[0, 2:4, 2:5].any()
    offset[0, 0] = -0.6
    assert leaves_the_map(conv((2, 2), offset=offset))[0, 2, 2:5].all()


def test_centers_in_original_pixels():
    y, x = filter_centers(conv(size=(2, 4)), input_size=(32, 64), pixel=(2.0, 0.5))
    assert y.tolist() == [16, 48]
    assert x.tolist() == [4, 12, 20, 28]


CENTERS = torch.arange(5, 400, 10.0), torch.arange(5, 600, 10.0)  # of cells of 10 x 10 pixels


def sizes_of(boxes, image_size=(400, 600), pixel=(1.0, 1.0), **rules):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sizes = object_sizes(CENTERS, image_size, boxes, pixel, Rules(**rules))
    return {name: (sizes == i).sum().item() for i, name in enumerate((*SIZES, "outside"))} | {
        "outside": (sizes == -1).sum().item()
    }


def test_sizes_by_area():
    assert sizes_of([]) == {"small": 0, "medium": 0, "large": 0, "background": 2400, "outside": 0}
    assert sizes_of([[0, 0, 95, 96]])["small"] == 9 * 10  # half-open: centres below 95 and 96
    assert sizes_of([[0, 0, 96, 96]])["medium"] == 10 * 10
    assert sizes_of([[0, 0, 224, 224]])["medium"] == 22 * 22
    assert sizes_of([[0, 0, 225, 224]])["large"] == 22 * 22
    assert sizes_of([[0, 0, 40, 40]], limits=(10, 39))["large"] == 4 * 4


def test_the_smallest_or_largest_of_overlapping_boxes_counts():
    for boxes in ([[0, 0, 300, 300], [0, 0, 50, 50]], [[0, 0, 50, 50], [0, 0, 300, 300]]):
        assert sizes_of(boxes)["small"] == 25
        assert sizes_of(boxes)["large"] == 900 - 25
        assert sizes_of(boxes, overlap="largest")["small"] == 0


def test_areas_of_the_network_input():
    # 100 x 100 original pixels are 50 x 50 input pixels.
    assert sizes_of([[0, 0, 100, 100]], pixel=(2.0, 2.0))["medium"] == 100
    assert sizes_of([[0, 0, 100, 100]], pixel=(2.0, 2.0), area="input")["small"] == 100


def test_filters_beyond_the_image_do_not_count():
    sizes = sizes_of([[0, 0, 900, 900]], image_size=(105, 205))
    assert sizes["large"] == 10 * 20
    assert sizes["outside"] == 2400 - 200


def test_moments():
    moments = Moments()
    moments.add(torch.tensor([1.0, 2.0]))
    moments.add(torch.tensor([]))
    moments.add(torch.tensor([6.0]))
    assert moments.as_dict() == {"count": 3, "mean": 3, "std": pytest.approx(math.sqrt(14 / 3))}
    assert Moments().as_dict() == {"count": 0, "mean": None, "std": None}


def test_boxes_of_annotations():
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS}
    record = {"annotations": [box, {**box, "iscrowd": 1}]}
    assert annotated_boxes(record).tolist() == [[1, 2, 4, 6]]
    assert annotated_boxes({"annotations": []}).shape == (0, 4)
    assert annotated_boxes({}) is None


class Net(nn.Module):
    """Stride 2; a plain and a deformable layer with dilation 2 in the last stage."""

    def __init__(self, groups=1):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("res4", nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)))
        stage = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=2, dilation=2),
            nn.Conv2d(4, 4, 1),
            DeformConv2d(4, 4, 3, padding=2, dilation=2, offset_groups=groups),
        )
        self.backbone.add_module("res5", stage)
        self.deformable = stage[2]

    def forward(self, batch):
        return self.backbone(torch.stack([inputs["image"] for inputs in batch]))


INPUTS = {"image": torch.rand(3, 20, 30), "height": 40, "width": 60}
BOXES = torch.tensor([[0.0, 0.0, 8.0, 40.0]])  # 10 x 2 filters, each 4 x 4 original pixels


def test_table_of_a_network():
    table = EffectiveDilation(Net())
    assert table.plain == ["backbone.res5.0", "backbone.res5.2"]
    maps = table.add(INPUTS, BOXES)
    table.add(INPUTS, BOXES)
    rows = table.as_dict()
    assert list(rows) == ["backbone.res5.0", "backbone.res5.2"]
    assert [row["deformable"] for row in rows.values()] == [False, True]
    for name, row in rows.items():
        assert row["dilation"] == [2, 2]
        assert row["small"] == {"count": 40, "mean": 2, "std": 0}
        assert row["background"] == {"count": 260, "mean": 2, "std": 0}
        assert row["all"]["count"] == 300
        assert row["large"]["count"] == 0
        assert (maps[name].values == 2).all() and maps[name].values.shape == (10, 15)
        assert maps[name].cell == (4, 4)


def test_offsets_count_in_the_layer_that_has_them():
    model = Net()
    with torch.no_grad():
        bias = model.deformable.conv_offset.bias.view(3, 3, 2)
        bias[..., 0] = torch.arange(3.0)[:, None]  # rows 3 apart
    table = EffectiveDilation(model)
    maps = table.add(INPUTS, BOXES)
    plain, deformable = table.as_dict().values()
    assert plain["all"]["mean"] == 2
    assert deformable["small"]["mean"] == deformable["all"]["mean"] == 2.5
    assert (maps["backbone.res5.2"].values == 2.5).all()


def test_without_known_objects_all_filters_count_together():
    table = EffectiveDilation(Net())
    table.add(INPUTS, None)
    for row in table.as_dict().values():
        assert row["all"]["count"] == 150
        assert row["background"]["count"] == 0


def test_groups_and_borders():
    model = Net(groups=2)
    with torch.no_grad():
        bias = model.deformable.conv_offset.bias.view(2, 3, 3, 2)
        bias[1, ..., 1] = torch.arange(3.0)
    means = {}
    for groups in Rules.CHOICES["groups"]:
        for border in Rules.CHOICES["border"]:
            table = EffectiveDilation(model, Rules(groups=groups, border=border))
            table.add(INPUTS, BOXES)
            row = table.as_dict()["backbone.res5.2"]["all"]
            means[groups, border] = row["count"], row["mean"]
    assert means["all", "keep"] == (300, 2.25)
    assert means["first", "keep"] == (150, 2)
    assert means["first", "drop"] == (6 * 11, 2)
    # The second group's columns reach from -2 to +4.
    assert means["all", "drop"][0] == 6 * 11 + 6 * 9


def test_last_stage_below_a_pyramid():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.fpn_output5 = nn.Conv2d(4, 4, 3)
    model.backbone.bottom_up = Net().backbone
    names = ["backbone.bottom_up.res5.0", "backbone.bottom_up.res5.2"]
    assert last_stage_convs(model) == names
