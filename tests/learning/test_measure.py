"""The measurements of a trained network, on a small one with real layers."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from benchmarks.learning import backbone, measure
from benchmarks.learning.study import PLAN, TASKS
from d2_deformable.checkpoint import SafeCheckpointer
from d2_deformable.engine import check_settings, read_config
from d2_deformable.layers import DeformConv2d, OffsetOutput
from yamls import CONFIGS

ROOT = CONFIGS.parent
QUICK = CONFIGS / "quick/warped_shapes_deeplab_R_18_dconv3.yaml"


@pytest.fixture
def model():
    cfg = read_config(str(QUICK), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    return model


@pytest.fixture
def images(tmp_path):
    """Inputs and records of two images of different sizes; masks have 9 classes and ignore some."""
    rng = np.random.default_rng(0)
    inputs, records = [], []
    for k, (height, width) in enumerate([(64, 96), (80, 64)]):
        mask = rng.integers(0, 10, (height // 16, width // 16)).repeat(16, 0).repeat(16, 1)
        mask[mask == 9] = 255
        file = tmp_path / f"{k}.png"
        Image.fromarray(mask.astype(np.uint8)).save(file)
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width)).astype(np.float32))
        inputs.append({"image": image, "height": height, "width": width})
        records.append({"sem_seg_file_name": str(file), "height": height, "width": width})
    return inputs, records


def test_counts_are_those_of_the_pixels(model, images):
    inputs, records = images
    counts = measure.segmentation_counts(model, inputs, records)["pixels"]
    assert counts.shape == (2, 9, 3)
    with torch.no_grad():
        predicted = model([inputs[1]])[0]["sem_seg"].argmax(0).numpy()
    truth = np.array(Image.open(records[1]["sem_seg_file_name"]))
    for k in range(9):
        known = truth != 255
        expected = [((predicted == k) & (truth == k)).sum(), ((predicted == k) & known).sum()]
        assert counts[1, k].tolist() == [*expected, (truth == k).sum()]


def test_offsets_are_replaced_for_a_call(model, images):
    inputs, _ = images
    outputs = [m for m in model.modules() if isinstance(m, OffsetOutput)]
    assert len(outputs) == 3

    @torch.no_grad()
    def scores(run):
        return [run([one])[0]["sem_seg"] for one in inputs]

    learned = scores(model)
    zero, other = scores(measure.ZeroOffsets(model)), scores(measure.PreviousOffsets(model))
    assert torch.equal(other[0], learned[0])  # no image precedes the first
    for changed in (zero[0], zero[1], other[1]):
        assert not any(torch.equal(changed, one) for one in learned if one.shape == changed.shape)
    assert not any(output._forward_hooks for output in outputs)
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            torch.nn.init.zeros_(layer.conv_offset.weight)
    assert all(torch.equal(a, b) for a, b in zip(zero, scores(model), strict=True))


def test_previous_offsets_are_those_predicted_without_exchange(model, images):
    """The offsets of every layer, not only of the first one, are those of the previous image."""
    inputs, _ = images
    same_size = [inputs[0], inputs[0] | {"image": inputs[0]["image"].flip(2)}]
    layers = [m for m in model.modules() if isinstance(m, DeformConv2d)]
    seen = {}
    for layer in layers:
        layer.offset_prediction.register_forward_hook(
            lambda output, _, prediction: seen.setdefault(output, []).append(prediction.offset)
        )
    with torch.no_grad():
        model([same_size[0]])
    own = {output: offsets[-1] for output, offsets in seen.items()}
    run = measure.PreviousOffsets(model)
    with torch.no_grad():
        for one in same_size:
            run([one])
    assert all(torch.allclose(run.replace(o, own[o], True), run.own[o]) for o in own)
    run.previous = own
    assert all(torch.allclose(run.replace(o, run.own[o], True), own[o]) for o in own)


def test_offsets_of_rois_are_replaced_too(model):
    run = measure.PreviousOffsets(model)
    first, second = torch.arange(6.0).view(3, 2, 1, 1), torch.zeros(5, 2, 1, 1)
    run.previous, run.own = {"layer": first}, {"layer": second}
    assert torch.equal(run.replace("layer", second, False), first[[0, 1, 2, 0, 1]])
    run.previous = {"layer": torch.zeros(0, 2, 1, 1)}  # the previous image had no RoI
    assert torch.equal(run.replace("layer", second, False), second)


def test_dilation_is_counted_by_the_size_of_regions(model, images):
    inputs, records = images
    found = measure.dilation_by_size(model, inputs, records)
    assert all(rows["all"][0] != 2 for name, rows in found.items() if "res5.0.conv2" in name)
    for rows in found.values():
        counted = sum(rows[size][2] for size in ("small", "medium", "large", "background"))
        assert rows["small"][2] > 0 and counted == rows["all"][2]
        assert rows["large"] == [None, None, 0]


def test_the_size_of_a_region_is_its_area_and_not_that_of_its_box():
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 0] = labels[99] = 1  # an L: 199 pixels in a box of 10,000
    labels[20:60, 20:60] = 2
    labels[:, 99] = 255
    sizes = measure.region_sizes(labels)
    assert sizes[0, 0] == sizes[99, 50] == 0
    assert sizes[10, 10] == sizes[5, 99] == 3  # background, inside the box of the L
    assert sizes[30, 30] == 1
    labels[:] = 3
    assert (measure.region_sizes(labels) == 2).all()


def test_sizes_are_read_at_the_centres_of_filters(tmp_path):
    labels = np.zeros((8, 12), np.uint8)
    labels[:4, 6:] = 1
    Image.fromarray(labels).save(tmp_path / "mask.png")
    record = {"sem_seg_file_name": str(tmp_path / "mask.png"), "height": 8, "width": 12}
    centers = torch.tensor([2.0, 6.0, 10.0]), torch.tensor([3.0, 9.0])
    assert measure.sizes_at(centers, record).tolist() == [[3, 0], [3, 3], [-1, -1]]
    box = {"bbox": [6, 0, 6, 4], "bbox_mode": BoxMode.XYWH_ABS}
    boxes = {"height": 8, "width": 12, "annotations": [box]}
    assert measure.sizes_at(centers, boxes).tolist() == [[3, 0], [3, 3], [-1, -1]]


@pytest.fixture(scope="module")
def thin():
    """The network of Base-R_50_thin.yaml, and random weights of its shapes with ONNX names."""
    cfg = read_config(str(ROOT / "benchmarks/learning/configs/clothing_deeplab.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    convs = []
    for name in backbone.convolution_names():
        shape = model.backbone.get_submodule(name).weight.shape
        std = (2 / shape[1:].numel()) ** 0.5
        convs.append((std * torch.randn(shape), 0.1 * torch.randn(shape[0])))
    return model, backbone.to_detectron2(convs)


@torch.no_grad()
def test_the_backbone_fits_and_only_res4_is_scaled(thin, tmp_path):
    model, weights = thin
    x = torch.randn(1, 3, 64, 64)
    trunk = model.backbone
    found = {}
    for factor in (1.0, backbone.RES4_SCALE):
        scaled = dict(weights)
        backbone.scale_res4(scaled, factor)
        assert set(scaled) == set(trunk.state_dict())
        trunk.load_state_dict(scaled)
        res4 = trunk.res4(trunk.res3(trunk.res2(trunk.stem(x))))
        found[factor] = res4, trunk.res5(res4)
    (plain4, plain5), (scaled4, scaled5) = found.values()
    assert torch.equal(scaled4, backbone.RES4_SCALE * plain4)
    assert torch.equal(scaled5, plain5) and plain5.std() > 0


def test_frozen_normalisation_adds_the_bias_alone(thin):
    model, weights = thin
    trunk = model.backbone
    trunk.load_state_dict(weights)
    conv = trunk.res3[0].conv1
    x = torch.randn(1, conv.in_channels, 5, 5)
    expected = torch.nn.functional.conv2d(x, conv.weight, conv.norm.bias, conv.stride)
    torch.testing.assert_close(conv(x), expected.relu() if conv.activation else expected)


@pytest.mark.parametrize("repetition", PLAN, ids=lambda r: f"{r.task}-{r.seed}-{r.branch}")
def test_every_arm_is_a_config_that_builds(repetition, thin):
    _, weights = thin
    states = []
    for run in repetition.branches:
        _, file, *overrides = run.arguments
        cfg = read_config(str(ROOT / file), overrides)
        check_settings(cfg)
        assert run.branch == cfg.SEED and run.start == cfg.MODEL.WEIGHTS
        assert TASKS[run.task].test not in cfg.DATASETS.TEST  # measured at the very end
        cfg.MODEL.DEVICE = "cpu"
        torch.manual_seed(cfg.SEED)
        states.append(build_model(cfg).state_dict())
    first = states[0]
    for state in states[1:]:
        assert all(torch.equal(first[name], state[name]) for name in first)


def test_a_trunk_loads_into_an_arm(thin, tmp_path):
    """Loaded as MODEL.WEIGHTS; only the parameters that the arm adds keep their initial values."""
    model, _ = thin
    file = tmp_path / "trunk.pth"
    torch.save({"model": model.state_dict()}, file)
    run = next(run for r in PLAN if r.trunk for run in r.branches if run.arm == "dconv3")
    cfg = read_config(str(ROOT / run.arguments[1]), run.arguments[2:])
    cfg.MODEL.DEVICE = "cpu"
    arm = build_model(cfg)
    SafeCheckpointer(arm).load(str(file))
    state = arm.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    new = [name for name in state if name not in model.state_dict()]
    assert len(new) == 6 and not any(state[name].any() for name in new)
