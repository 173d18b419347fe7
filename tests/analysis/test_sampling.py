import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes, Instances
from torch import nn

from d2_deformable.analysis.record import (
    ConvOffsets,
    Inspection,
    OffsetRecord,
    inspect_image,
    record_offsets,
)
from d2_deformable.analysis.sampling import compose_taps, conv_sampling_points, part_boxes
from d2_deformable.layers import (
    DeformConv2d,
    DeformRoIAlign,
    DeformRoIPool,
    OffsetPrediction,
)
from d2_deformable.modeling import RFCNOutputLayers
from d2_deformable.modeling.poolers import DeformROIPooler


def conv_offsets(offset=None, size=(16, 16), groups=1, stride=1, dilation=1, padding=None):
    """A 3x3 layer on a feature map of `size`; its offsets are zero or `offset`."""
    padding = dilation if padding is None else padding
    out = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in size]
    zeros = torch.zeros(groups, 9, 2, *out)
    return ConvOffsets(
        name="conv",
        offset=zeros if offset is None else zeros + offset,
        mask=None,
        input_size=size,
        kernel_size=(3, 3),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
    )


def cell(y, x):
    return torch.tensor([y, x])


def test_one_plain_layer_is_the_dilated_grid():
    points, inside = compose_taps([conv_offsets(dilation=2)], cell(5, 7))
    rows = [[3, 5], [3, 7], [3, 9], [5, 5], [5, 7], [5, 9], [7, 5], [7, 7], [7, 9]]
    assert points.tolist() == [rows]
    assert inside.all()


def test_stride_and_padding():
    layer = conv_offsets(stride=2, dilation=1, padding=1, size=(9, 9))
    points, inside = compose_taps([layer], cell(4, 0))
    assert points[0, 0].tolist() == [7, -1]
    assert points[0, 8].tolist() == [9, 1]
    assert inside.tolist() == [[False, True, True] * 2 + [False] * 3]


def test_a_constant_offset_shifts_every_point():
    offset = torch.tensor([0.25, -1.5])[:, None, None]
    fixed, _ = compose_taps([conv_offsets()] * 2, cell(8, 8))
    moved, _ = compose_taps([conv_offsets(offset)] * 2, cell(8, 8))
    assert fixed.shape == (1, 81, 2)
    assert (moved - fixed).unique(dim=1).tolist() == [[[0.5, -3.0]]]
    unmoved, _ = compose_taps([conv_offsets(offset)] * 2, cell(8, 8), deformed=False)
    assert unmoved.equal(fixed)


def test_each_tap_takes_its_own_offset_of_the_nearest_cell():
    upper, lower = conv_offsets(), conv_offsets()
    upper.offset[0, 8, :, 4, 4] = torch.tensor([0.6, -0.2])
    lower.offset[0, 1, :, 6, 5] = torch.tensor([1.0, 2.0])
    points, _ = compose_taps([lower, upper], cell(4, 4))
    # Tap 8 of cell (4, 4) is at (5.6, 4.8), nearest to cell (6, 5), whose tap 1 is at (-1, 0).
    torch.testing.assert_close(points[0, 8 * 9 + 1], torch.tensor([5.6, 6.8]))
    torch.testing.assert_close(points[0, 8 * 9 + 0], torch.tensor([4.6, 3.8]))


def test_paths_end_beyond_the_border():
    layer = conv_offsets(dilation=2)
    _, inside = compose_taps([layer], cell(0, 0))
    assert inside.tolist() == [[False] * 4 + [True, True] + [False] + [True, True]]
    points, inside = compose_taps([layer, layer], cell(0, 0))
    # Along each axis 5 of the 9 paths stay on the map. The path of tap 0 leaves it, although its
    # own tap 8 is on the map again.
    assert inside.sum() == 25
    assert points[0, 8].tolist() == [0, 0]
    assert not inside[0, 8]


def test_offsets_of_a_diverged_network_give_no_points():
    for value in (float("nan"), float("inf"), 1e30):
        _, inside = compose_taps([conv_offsets(value)] * 2, cell(8, 8))
        assert not inside.any()


def test_groups_have_their_own_points():
    offset = torch.tensor([0.0, 3.0])[:, None, None, None, None]
    points, inside = compose_taps([conv_offsets(offset, groups=2)], cell(8, 8))
    assert points.shape == (2, 9, 2) and inside.shape == (2, 9)
    assert points[:, 4].tolist() == [[8, 8], [11, 11]]


def test_a_strided_layer_between_scales_the_points():
    points, _ = compose_taps([conv_offsets(size=(16, 16)), conv_offsets(size=(8, 8))], cell(3, 4))
    assert points[0, 4 * 9 + 4].tolist() == [6, 8]
    assert points[0, 0].tolist() == [2 * 2 - 1, 3 * 2 - 1]


def test_points_are_in_pixels_of_the_original_image():
    record = OffsetRecord([conv_offsets(dilation=2)] * 3, [], input_size=(256, 256))
    inspection = Inspection(record, None, image_size=(480, 120), pixel=(2.0, 0.5))
    unit, points, inside = conv_sampling_points(inspection, (300, 60))
    # Cells are 32 x 8 original pixels: (300, 60) lies in cell (9, 7).
    assert unit.tolist() == [9.5 * 32, 7.5 * 8]
    assert points.shape == (1, 729, 2)
    assert points[0, 0].tolist() == [3.5 * 32, 1.5 * 8]
    assert points[0, 728].tolist() == [15.5 * 32, 13.5 * 8]
    assert inside.all()
    # A point beyond the image belongs to the last cell.
    assert conv_sampling_points(inspection, (9e9, -5.0)).unit.tolist() == [15.5 * 32, 4]


def test_the_last_layers_count():
    convs = [conv_offsets(dilation=dilation) for dilation in (3, 1, 2)]
    record = OffsetRecord(convs, [], input_size=(16, 16))
    inspection = Inspection(record, None, (16, 16), (1.0, 1.0))
    points = conv_sampling_points(inspection, (8, 8), num_layers=2).points
    assert points.shape == (1, 81, 2)
    assert points[0, 0].tolist() == [8.5 - 3, 8.5 - 3]
    assert conv_sampling_points(inspection, (8, 8), num_layers=9).points.shape == (1, 729, 2)


def test_no_deformable_layers_are_an_error():
    inspection = Inspection(OffsetRecord(), None, (8, 8), (1.0, 1.0))
    with pytest.raises(ValueError, match="no deformable convolution"):
        conv_sampling_points(inspection, (0, 0))
    with pytest.raises(ValueError, match="no deformable RoI pooling"):
        part_boxes(inspection, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))


class Net(nn.Module):
    """A backbone and a function of its feature map."""

    def __init__(self, backbone, head=None, **modules):
        super().__init__()
        self.backbone = backbone
        self.head = head
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, batch):
        x = self.backbone(torch.stack([inputs["image"] for inputs in batch]))
        if self.head is not None:
            self.head(self, x)
        return [{"instances": Instances((1, 1))} for _ in batch]


@pytest.mark.parametrize("stride", [1, 2])
def test_points_are_where_the_gradient_goes(stride):
    layer = DeformConv2d(2, 1, 3, stride=stride, padding=2, dilation=2, bias=False)
    nn.init.normal_(layer.conv_offset.weight, std=0.5)
    image = torch.rand(2, 15, 21, requires_grad=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with record_offsets(Net(layer)) as record:
        output = layer(image[None])
    assert record.input_size == (15, 21)
    for y, x in ((0, 0), (3, 5), (output.shape[2] - 1, output.shape[3] - 1)):
        points, inside = compose_taps(record.convs, cell(y, x))
        # Keep only the part of the gradient that does not pass through the offsets.
        hook = layer.offset_prediction.register_forward_hook(
            lambda _, args, prediction: OffsetPrediction(prediction.offset.detach(), None)
        )
        (grad,) = torch.autograd.grad(layer(image[None])[0, 0, y, x], image)
        hook.remove()
        seen = grad[0].nonzero().float()
        gaps = (seen[:, None] - points[0]).abs().amax(dim=2)  # (cells, points)
        assert (gaps.min(dim=1).values < 1).all()
        assert (gaps.min(dim=0).values[inside[0]] < 1).all()


def test_layers_are_recorded_in_the_order_they_run():
    def conv():
        return DeformConv2d(3, 3, 3, padding=1, modulated=True)

    model = Net(nn.Sequential(conv(), nn.Conv2d(3, 3, 1, stride=2), conv())).train()
    inspection = inspect_image(model, {"image": torch.rand(3, 8, 12), "height": 16, "width": 36})
    convs = inspection.record.convs
    assert [c.name for c in convs] == ["backbone.0", "backbone.2"]
    assert [c.input_size for c in convs] == [(8, 12), (4, 6)]
    assert convs[1].offset.shape == (1, 9, 2, 4, 6)
    assert convs[1].mask.shape == (1, 9, 4, 6)
    assert inspection.pixel == (2.0, 3.0)
    assert model.training
    with record_offsets(model) as record:
        model([{"image": torch.rand(3, 8, 8)}])
    model([{"image": torch.rand(3, 8, 8)}])  # no longer recorded
    assert len(record.convs) == 2


def test_two_images_at_once_are_an_error():
    model = Net(nn.Conv2d(3, 3, 1))
    with record_offsets(model), pytest.raises(ValueError, match="one image at a time, got 2"):
        model([{"image": torch.rand(3, 8, 8)}] * 2)


def coordinates(height, width):
    """An image (2, H, W) whose channels are its own y and x, at pixel centers."""
    axes = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sample_means(parts, samples):
    """Mean (y, x) of the samples in each part; samples are at the top left of their cells."""
    size = parts[..., 2:] - parts[..., :2]
    return (parts[..., :2] + size * (samples - 1) / (2 * samples)).flip(-1)


BOXES = torch.tensor([[60.3, 80.6, 131.5, 220.2], [90.0, 100.0, 250.0, 180.0]])


@pytest.mark.parametrize("round_rois", [True, False])
def test_parts_of_rfcn_are_where_the_operator_samples(round_rois):
    k, classes, samples = 3, 4, 4
    layers = RFCNOutputLayers(
        ShapeSpec(channels=2, stride=16),
        resolution=k,
        deformable=True,
        round_rois=round_rois,
        num_classes=classes - 1,
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
    )
    predictor = layers.cls_score
    nn.init.normal_(predictor.offset_maps.bias, std=0.5)
    rois = convert_boxes_to_pooler_format([Boxes(BOXES)])
    pooled = {}

    def head(model, x):
        for i, axis in enumerate("yx"):
            # Make every score map equal to the coordinate.
            nn.init.zeros_(predictor.score_maps.weight)
            predictor.score_maps.weight[:, i] = 1
            maps = predictor.score_maps(x)
            offset, _ = predictor.predict_offsets(x, rois)
            pooled[axis] = predictor._deform_pool(maps, rois, offset, 1 / 16)
        layers(x, [Boxes(BOXES)])

    model = Net(nn.AvgPool2d(16), head, layers=layers)
    inspection = inspect_image(model, {"image": coordinates(320, 320), "height": 640, "width": 160})
    pixel = torch.tensor([0.5, 2.0, 0.5, 2.0])  # x, y: original per network input
    index = torch.tensor([2, 0])
    parts = part_boxes(inspection, BOXES * pixel, index)
    assert parts.shape == (2, k * k, 4)
    expected = torch.stack([pooled[axis][[0, 1], index].flatten(1) for axis in "yx"], dim=-1)
    actual = sample_means(parts / pixel, samples)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)

    plain = part_boxes(inspection, BOXES * pixel, index, deformed=False)
    assert (plain - parts).abs().max() > 1
    first, last = plain[1, 0] / pixel, plain[1, 8] / pixel
    torch.testing.assert_close(first[:2], torch.tensor([90.0, 100.0]))
    torch.testing.assert_close(last[2:], torch.tensor([250.0, 180.0]))


def test_parts_of_rfcn_on_a_pyramid_are_those_of_their_level():
    """One call of the predictor per level, but one layer for classes and one for boxes."""
    strides = (8, 16)
    layers = RFCNOutputLayers(
        [ShapeSpec(channels=2, stride=stride) for stride in strides],
        resolution=3,
        deformable=True,
        num_classes=3,
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
    )
    nn.init.normal_(layers.cls_score.offset_maps.weight)
    boxes = torch.tensor([[0.0, 0, 300, 310], [10, 20, 60, 50]])  # of the second, the first level

    def head(model, x):
        layers([x, x[..., ::2, ::2]], [Boxes(boxes)])

    model = Net(nn.AvgPool2d(8), head, layers=layers)
    inputs = {"image": coordinates(320, 320), "height": 320, "width": 320}
    with torch.no_grad():
        pools = inspect_image(model, inputs).record.pools
        assert [p.name for p in pools] == ["layers.cls_score", "layers.bbox_pred"]
        assert [p.num_classes for p in pools] == [4, 1]
        offset, scale = pools[0].predict(boxes)
        alone = [pools[0].predict(box[None])[0] for box in boxes]
    assert scale.tolist() == [1 / 16, 1 / 8] and offset.shape == (2, 4, 2, 3, 3)
    torch.testing.assert_close(offset, torch.cat(alone))


def test_parts_of_faster_rcnn_are_where_the_operator_samples_on_every_level():
    k, samples = 3, 4
    pool = DeformRoIPool(2, k)
    nn.init.normal_(pool.offset_fc.bias, std=0.5)
    # Boxes larger and smaller than the canonical 224 pixels.
    boxes = torch.cat([BOXES, torch.tensor([[100.2, 90.0, 520.7, 600.0]])])
    pooler = DeformROIPooler(pool, scales=(1 / 8, 1 / 16))
    pooled = []

    def head(model, x):
        levels = [x, nn.functional.avg_pool2d(x, 2)]
        pooled.append(model.pooler(levels, [Boxes(boxes)]))

    model = Net(nn.AvgPool2d(8), head, pooler=pooler)
    inspection = inspect_image(model, {"image": coordinates(720, 720)})
    scale = inspection.record.pools[0].predict(boxes)[1]
    assert scale.tolist() == [1 / 8, 1 / 8, 1 / 16]
    # One set of shifts for all classes.
    parts = part_boxes(inspection, boxes, torch.tensor([5, 0, 3]))
    expected = pooled[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(sample_means(parts, samples), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("modulated", [False, True])
def test_parts_of_levels_with_layers_of_their_own(modulated):
    pools = nn.ModuleList(
        DeformRoIAlign(2, 3, hidden_channels=4, modulated=modulated) for _ in range(2)
    )
    for shift, pool in enumerate(pools, start=1):
        nn.init.constant_(pool.offset_fc[-1].bias, shift)
    large = torch.tensor([[100.2, 90.0, 520.7, 600.0]])
    model = Net(
        nn.AvgPool2d(8),
        lambda model, x: model.pooler([x, nn.functional.avg_pool2d(x, 2)], [Boxes(large)]),
        pooler=DeformROIPooler(pools, scales=(1 / 8, 1 / 16)),
    )
    pool = inspect_image(model, {"image": coordinates(720, 720)}).record.pools[0]
    offset, scale = pool.predict(torch.cat([BOXES[:1], large]))
    assert scale.tolist() == [1 / 8, 1 / 16] and not pool.round_rois
    assert offset.flatten(1).unique(dim=1).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (DeformRoIPool(2, 1), [[1, 3, 11, 13], [-1, 3, 8, 3.8], [0, 0, 8, 8]]),
        # mmcv neither rounds boxes nor enlarges them.
        (
            DeformRoIAlign(2, 1, hidden_channels=4),
            [[0.5, 2.5, 10.5, 12.5], [-0.5, 3, 8, 3.2], [0.49999997, 0, 8, 8]],
        ),
    ],
    ids=["DeformRoIPool", "DeformRoIAlign"],
)
def test_corners_are_rounded_away_from_zero_and_tiny_boxes_grow(pool, expected):
    model = Net(
        nn.AvgPool2d(8),
        lambda model, x: model.pooler([x], [Boxes(torch.zeros(0, 4))]),
        pooler=DeformROIPooler(pool, scales=(1 / 8,)),
    )
    inspection = inspect_image(model, {"image": coordinates(64, 64)})
    boxes = [[0.5, 2.5, 10.5, 12.5], [-0.5, 3.0, 8.0, 3.2], [0.49999997, 0.0, 8.0, 8.0]]
    parts = part_boxes(inspection, torch.tensor(boxes), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(parts[:, 0], torch.tensor(expected))
