"""Second-order gradients through whole backbones: the gradient penalty of a Wasserstein critic."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from d2_deformable.layers import DeformConv2d


def critic(cfg, modulated=True, checkpoint=False):
    """A deformable network in float64 with random offsets."""
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_backbone"
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINT = checkpoint
    resnets = cfg.MODEL.RESNETS
    resnets.NORM, resnets.DEPTH, resnets.RES5_DILATION = "GN", 18, 2
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 32, 32
    resnets.OUT_FEATURES, resnets.DEFORM_NUM_LAYERS = ["res5"], 3
    resnets.DEFORM_MODULATED, resnets.DEFORM_NUM_GROUPS = modulated, 2
    torch.manual_seed(1)
    net = build_backbone(cfg, ShapeSpec(channels=3)).double().train()
    for module in net.modules():
        if isinstance(module, DeformConv2d):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
            torch.nn.init.uniform_(module.conv_offset.bias, 0.2, 0.8)
    return net


def penalty(net, image):
    """Gulrajani et al. 2017, equation 3."""
    image = image.clone().requires_grad_()
    score = net(image)["res5"].square().mean((1, 2, 3))
    (slope,) = torch.autograd.grad(score.sum(), image, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
def test_gradient_penalty(cfg, modulated, checkpoint, device):
    """Its slope along a direction in parameter space equals the one that small steps measure."""
    net = critic(cfg, modulated, checkpoint).to(device)
    image = torch.randn(2, 3, 32, 48, dtype=torch.float64, device=device)
    parameters = list(net.parameters())
    value = penalty(net, image)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    assert sum(gradient is not None for gradient in gradients) > 0.9 * len(parameters)
    # Move along the gradient, where the slope is not 0.
    directions = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
    norm = sum(d.square().sum() for d in directions).sqrt()

    def moved(step):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=float(step / norm))
        value = penalty(net, image).item()
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=float(step / norm))
        return value

    step = 1e-7
    slope = (moved(step) - moved(-step)) / (2 * step)
    assert slope == pytest.approx(norm.item(), rel=1e-3)


def test_compiled_networks_have_first_gradients_only(cfg, device):
    """PyTorch's compiler does not support second-order gradients, and says so."""
    torch._dynamo.reset()
    layer = DeformConv2d(3, 4, 3, padding=1).to(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    image = torch.randn(1, 3, 5, 6, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(compiled(image).sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        slope.square().sum().backward()
