"""MODEL.BACKBONE.ACTIVATION_CHECKPOINT saves memory, and results stay equal to the bit."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from d2_deformable.layers import DeformConv2d

RESNET = "build_deform_resnet_backbone"


def pair(cfg, name=RESNET, depth=18, norm="BN", freeze_at=0, deform_layers=3):
    """The same network without and with checkpointing."""
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    resnets = cfg.MODEL.RESNETS
    resnets.NORM, resnets.DEPTH, resnets.RES5_DILATION = norm, depth, 2
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS, resnets.WIDTH_PER_GROUP = 8, 8, 8
    if depth >= 50:
        resnets.RES2_OUT_CHANNELS = 16
    resnets.OUT_FEATURES = ["res4", "res5"]
    resnets.DEFORM_NUM_LAYERS = deform_layers
    plain = build_backbone(cfg, ShapeSpec(channels=3))
    for module in plain.modules():
        if isinstance(module, DeformConv2d):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.1)
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINT = True
    checkpointed = build_backbone(cfg, ShapeSpec(channels=3))
    checkpointed.load_state_dict(plain.state_dict())
    return plain, checkpointed


def train_step(net, x, autocast=False) -> list:
    """Features, gradients with respect to all parameters, and all buffers after the step."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
        features = list(net(x).values())
    sum(feature.float().square().mean() for feature in features).backward()
    return [*features, *(p.grad for p in net.parameters() if p.requires_grad), *net.buffers()]


def saved_bytes(net, x) -> int:
    """Bytes that autograd keeps between forward and backward."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = net(x)
    assert features
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    return sum(size for key, size in storages.items() if key not in weights)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 50},
        {"norm": "FrozenBN"},
        {"freeze_at": 3},
        {"norm": "SyncBN"},
        {"name": "build_aligned_inception_resnet_backbone", "depth": 26},
    ],
    ids=str,
)
def test_equal_to_the_bit(cfg, settings, device):
    plain, checkpointed = (net.train().to(device) for net in pair(cfg, **settings))
    x = torch.randn(2, 3, 64, 96, device=device)
    for _ in range(2):  # the second step uses running statistics that the first has updated
        for actual, expected in zip(train_step(checkpointed, x), train_step(plain, x), strict=True):
            assert torch.equal(actual, expected)


def test_blocks_are_computed_again_for_every_backward(cfg):
    """retain_graph, then second-order gradients; only the first pass updates statistics."""
    nets = [net.train() for net in pair(cfg)]
    x, results = torch.randn(2, 3, 64, 96), []
    for net in nets:
        weights = list(net.parameters())
        loss = sum(feature.square().mean() for feature in net(x).values())
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        second = torch.autograd.grad(loss, weights, create_graph=True)
        sum(g.square().sum() for g in second).backward()
        results.append((first, [w.grad for w in weights], list(net.buffers())))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_saves_memory(cfg, device):
    plain, checkpointed = (net.train().to(device) for net in pair(cfg, depth=50))
    x = torch.randn(2, 3, 64, 96, device=device)
    assert saved_bytes(checkpointed, x) < 0.5 * saved_bytes(plain, x)


def test_autocast(cfg, device):
    plain, checkpointed = (net.train().to(device) for net in pair(cfg))
    x = torch.randn(2, 3, 64, 96, device=device)
    for actual, expected in zip(
        train_step(checkpointed, x, autocast=True), train_step(plain, x, autocast=True), strict=True
    ):
        assert torch.equal(actual, expected)


def test_inference_is_not_computed_twice(cfg, device):
    plain, checkpointed = (net.eval().to(device) for net in pair(cfg))
    x = torch.randn(1, 3, 64, 64, device=device)
    for actual, expected in zip(checkpointed(x).values(), plain(x).values(), strict=True):
        assert torch.equal(actual, expected)
    calls = []
    checkpointed.res2[0].register_forward_hook(lambda *_: calls.append(1))
    sum(f.sum() for f in checkpointed(x).values()).backward()
    assert len(calls) == 1


def test_copies_and_settings_stay(cfg, device):
    _, net = pair(cfg)
    net = copy.deepcopy(net).train().to(device)
    train_step(net, torch.randn(2, 3, 64, 64, device=device))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.momentum == 0.1
            assert module.num_batches_tracked == 1


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_compiles(cfg, norm, device):
    plain, checkpointed = (net.train().to(device) for net in pair(cfg, norm=norm, deform_layers=1))
    torch._dynamo.reset()
    compiled = torch.compile(checkpointed, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 64, 64, device=device)
    with torch.autocast(device.type, enabled=False):
        actual, expected = train_step(compiled, x), train_step(plain, x)
    torch.testing.assert_close(actual, expected)
