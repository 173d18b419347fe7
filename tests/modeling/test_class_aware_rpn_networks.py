"""ClassAwareRPN on the networks of configs/."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from yamls import CONFIGS, load


def num_parameters(model):
    """Number of weights, biases, and affine pairs of frozen batch norms, which are buffers."""
    frozen = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    return sum(p.numel() for p in model.parameters()) + sum(2 * len(m.weight) for m in frozen)


@pytest.mark.parametrize("dims, classes, sizes", [([512], 20, 3), ([512], 80, 4), ([], 20, 3)])
def test_parameters_of_resnet_101(dims, classes, sizes):
    """49.43 M on VOC and, without the 3x3 convolution, 44.83 M."""
    cfg = load(CONFIGS / "Base-class_aware_rpn.yaml")
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.RESNETS.DEPTH = 101
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64, 128, 256, 512][-sizes:]]
    cfg.MODEL.RPN.CONV_DIMS = dims
    with torch.device("meta"):
        model = build_model(cfg)
    trunk, reduction = 42_500_160, 2048 * 1024 + 1024
    hidden, anchors = 512 if dims else 1024, 3 * sizes
    conv = 1024 * 9 * 512 + 512 if dims else 0
    layers = (hidden + 1) * anchors * (classes + 1 + 4)
    assert num_parameters(model) == trunk + reduction + conv + layers
    if classes == 20:
        assert num_parameters(model) == (49_432_865 if dims else 44_828_961)


def quick(name=""):
    cfg = load(CONFIGS / f"quick/warped_shapes_class_aware_rpn_R_18{name}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    return build_model(cfg)


def two_of_a_size():
    boxes = Boxes(torch.tensor([[10.0, 6, 44, 40], [50, 12, 90, 62], [0, 0, 8, 2]]))
    gt = Instances((64, 96), gt_boxes=boxes, gt_classes=torch.tensor([2, 0, 1]))
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    first, second = ({"image": image, "instances": gt} for image in images)
    return [first | {"height": 128, "width": 288}, second]


def train(model, batch):
    model.train()
    with EventStorage():
        return model(batch)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        a, b = a["instances"], b["instances"]
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(a.scores, b.scores)
        assert a.pred_classes.equal(b.pred_classes)


@torch.no_grad()
def test_zero_offsets_change_nothing():
    plain, deformable = quick(), quick("_dconv3")
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert missing and all(".conv_offset." in name for name in missing) and not unexpected
    batch, losses = two_of_a_size(), []
    for model in (plain, deformable):
        torch.manual_seed(0)
        losses.append(train(model, batch))
    torch.testing.assert_close(*losses)
    assert_same(plain.eval()(batch), deformable.eval()(batch))


@torch.no_grad()
def test_a_batch_is_its_images():
    model, batch = quick().eval(), two_of_a_size()
    together = model(batch)
    assert len(together[0]["instances"]) > 10
    assert_same(together, [model([x])[0] for x in batch])


@torch.no_grad()
def test_state_dict_round_trip():
    model, other = quick("_dconv3").eval(), quick("_dconv3").eval()
    for p in other.parameters():
        p.add_(0.1)
    other.load_state_dict(model.state_dict())
    assert_same(other(two_of_a_size()), model(two_of_a_size()))
    head = {name for name in model.state_dict() if name.startswith("head.")}
    layers = ("conv", "objectness_logits", "anchor_deltas")
    assert head == {f"head.{layer}.{p}" for layer in layers for p in ("weight", "bias")}


def test_autocast():
    model, batch = quick("_dconv3"), two_of_a_size()
    torch.manual_seed(0)
    expected = train(model, batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train(model, batch)
        sum(losses.values()).backward()
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, expected[name], rtol=0.1, atol=1e-3)
        with torch.no_grad():
            found = model.eval()(batch)[0]["instances"]
    assert len(found) > 10 and found.scores.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
