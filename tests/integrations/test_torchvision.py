"""TorchVision's models become deformable in one call, and compute the same before training."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet18, segmentation, vit_b_16
from torchvision.ops import FrozenBatchNorm2d

from d2_deformable.integrations.torchvision import deformable
from d2_deformable.layers import DeformConv2d, deform_modules

RANDOM = {"weights": None, "weights_backbone": None}
SIZES = {"min_size": 64, "max_size": 96}
DETECTORS = {
    "fasterrcnn_resnet50_fpn": {"box_score_thresh": 0.0, "box_detections_per_img": 20},
    "maskrcnn_resnet50_fpn": {"box_score_thresh": 0.0, "box_detections_per_img": 20},
    "retinanet_resnet50_fpn": {"score_thresh": 0.0},
    "fcos_resnet50_fpn": {"score_thresh": 0.0},
    "fasterrcnn_mobilenet_v3_large_fpn": {"box_score_thresh": 0.0},
}
SEGMENTORS = ["deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"]
LAYER4 = [f"layer4.{i}.conv2" for i in range(3)]


def build(name, **options):
    torch.manual_seed(0)
    if name in DETECTORS:
        options = {"num_classes": 3} | SIZES | DETECTORS[name] | options
        return getattr(detection, name)(**RANDOM, **options)
    return getattr(segmentation, name)(**RANDOM, num_classes=3, **options)


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d)}


def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def tensors(output):
    values = output if isinstance(output, list) else [output]
    return [value for result in values for value in result.values()]


@torch.no_grad()
def results(model):
    """All that a model in evaluation mode finds in two images, in double precision."""
    model, x = copy.deepcopy(model).double().eval(), images().double()
    found = tensors(model(list(x) if hasattr(model, "transform") else x))
    assert sum(value.numel() for value in found)
    return found


def move(model):
    for layer in layers(model).values():
        nn.init.normal_(layer.conv_offset.bias)
    return model


OFTEN = [*("fasterrcnn", "retinanet", "fcos"), "deeplabv3"]
models = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.split("_resnet50")[0] in OFTEN else pytest.mark.slow)
        for name in (*DETECTORS, *SEGMENTORS)
    ],
)


@models
def test_the_outputs_stay(name):
    model = build(name)
    names, expected = set(model.state_dict()), results(model)
    assert deformable(model, last=3, modulated=True) is model
    assert len(layers(model)) == 3
    new = set(model.state_dict()) - names
    assert new == {f"{n}.conv_offset.{p}" for n in layers(model) for p in ("weight", "bias")}
    torch.testing.assert_close(results(model), expected)
    moved = results(move(model))
    assert [t.shape for t in moved] != [t.shape for t in expected] or not all(
        torch.equal(a, b) for a, b in zip(moved, expected, strict=True)
    )


def losses(model, name):
    x = images()
    if name in SEGMENTORS:
        labels = torch.randint(0, 3, (2, 64, 96))
        return [nn.functional.cross_entropy(scores, labels) for scores in model(x).values()]
    targets = [
        {
            "boxes": torch.tensor([[8.0, 8.0, 50.0, 50.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 64, 96, dtype=torch.uint8),
        }
        for _ in x
    ]
    return list(model(list(x), targets).values())


@models
def test_two_steps_of_training_and_a_checkpoint(name, tmp_path):
    model = deformable(build(name), offset_groups=2).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    for _ in range(2):
        optimizer.zero_grad()
        found = losses(model, name)
        sum(found).backward()
        optimizer.step()
    assert all(torch.isfinite(loss) for loss in found)
    for layer_name, layer in layers(model).items():
        assert layer.conv_offset.weight.any(), layer_name
        assert not torch.equal(layer.weight, before[f"{layer_name}.weight"])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = deformable(build(name), offset_groups=2)
    again.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    torch.testing.assert_close(results(again), results(model), rtol=0, atol=0)


def test_which_layers_are_the_last():
    model = deformable(build("fasterrcnn_resnet50_fpn"))
    assert list(layers(model)) == [f"backbone.body.{n}" for n in LAYER4]
    model = deformable(build("deeplabv3_resnet50"))
    assert list(layers(model)) == [f"backbone.{n}" for n in LAYER4]
    assert [layer.dilation for layer in layers(model).values()] == [(2, 2), (4, 4), (4, 4)]
    net = deformable(resnet18(), last=4)
    assert list(layers(net)) == [f"layer4.{i}.conv{k}" for i in (0, 1) for k in (1, 2)]
    assert not layers(deformable(resnet18(), last=0))


@pytest.mark.slow
def test_ssd():
    """Its backbone has further layers behind the network; the last have stride and no padding."""
    model = detection.ssd300_vgg16(**RANDOM, num_classes=3).eval()
    x = list(torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        expected = tensors(model(x))
        actual = tensors(deformable(model, last=5)(x))
    assert all(name.startswith("backbone.extra.") for name in layers(model))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d, lambda n: nn.GroupNorm(8, n)])
def test_every_normalisation(norm):
    options = {"weights": None, "norm_layer": norm}
    net = resnet18(**options).double()
    x = images().double()
    expected = net(x)
    torch.testing.assert_close(deformable(net)(x), expected)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 2
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()
    assert len(layers(synced)) == 3
    torch.testing.assert_close(synced(x), net.eval()(x))


def test_weights_of_the_plain_model_load():
    plain, model = resnet18(), deformable(resnet18())
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys and len(result.missing_keys) == 6
    x = images()
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_heads_by_name():
    model = build("maskrcnn_resnet50_fpn")
    expected = results(model)
    deform_modules(model, [["roi_heads.mask_head", {"groups": 4}], ["rpn.head.conv"]])
    assert len(layers(model)) == 5
    torch.testing.assert_close(results(model), expected)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="last is 3; expected 0 to 1, .* VisionTransformer's"):
        deformable(vit_b_16())
    with pytest.raises(ValueError, match="last is -1; expected 0 to 17"):
        deformable(resnet18(), last=-1)
    with pytest.raises(ValueError, match="layer4.1.conv2: offset_groups=3 does not divide the 512"):
        deformable(resnet18(), last=1, offset_groups=3)
    with pytest.raises(ValueError, match="layer4.1.conv2: .* got a DeformConv2d"):
        deformable(deformable(resnet18()), last=1)
