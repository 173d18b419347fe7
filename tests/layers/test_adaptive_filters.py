"""The purpose of a deformable layer: it learns a filter whose size follows its input."""

import torch
import torch.nn.functional as F

from d2_deformable.layers import DeformConv2d

FILTER = torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.75, -0.5], [-0.75, 0.5, 1.0]])


def zoomed(generator, count=8, side=24):
    """Smooth noise at `count` scales from 1 to 4, and the output of FILTER at that scale.

    Returns:
        x (count, 2, side, side), the noise and a map of the scale; y (count, 1, side, side);
        scale (count,).
    """
    scale = 1 + 3 * torch.rand(count, generator=generator)
    noise = F.avg_pool2d(torch.randn(count, 1, 64, 64, generator=generator), 3, 1, 1) * 3
    step = torch.arange(side) - side / 2

    def seen(dy, dx):
        """The noise at (pixel + scale * (dy, dx)) / scale, which zooms it by the scale."""
        grid = [step / scale[:, None] + shift for shift in (dx, dy)]
        x, y = (axis / 31.5 for axis in grid)
        points = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
        return F.grid_sample(noise, points, align_corners=True)

    taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    y = sum(w * seen(*tap) for w, tap in zip(FILTER.flatten(), taps, strict=True))
    return torch.cat([seen(0, 0), scale.view(-1, 1, 1, 1).expand(-1, 1, side, side)], 1), y, scale


def trained(layer, steps=400):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        x, y, _ = zoomed(generator)
        optimizer.zero_grad()
        _inner(layer(x) - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    return layer


def _inner(x):
    """Crop the border, where a wide filter reads beyond the map."""
    return x[..., 4:-4, 4:-4]


@torch.no_grad()
def relative_error(layer, x, y):
    return (_inner(layer(x) - y).square().mean() / _inner(y).square().mean()).sqrt().item()


def effective_dilation(offset):
    """Mean distance of adjacent taps of each image: offset (N, 18, H, W) on a grid of step 1."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(3.0)] * 2, indexing="ij"), dim=-1)
    points = _inner(offset).unflatten(1, (3, 3, 2)) + grid[None, ..., None, None]
    down, right = points.diff(dim=1).norm(dim=3), points.diff(dim=2).norm(dim=3)
    return (down.flatten(1).mean(1) + right.flatten(1).mean(1)) / 2


def test_filters_grow_with_the_scale_of_their_input():
    torch.manual_seed(0)
    plain = trained(torch.nn.Conv2d(2, 1, 3, padding=1))
    deform = trained(DeformConv2d(2, 1, 3, padding=1))
    x, y, scale = zoomed(torch.Generator().manual_seed(1), count=64)
    error = relative_error(deform, x, y)
    assert error < 0.5 * relative_error(plain, x, y)
    with torch.no_grad():
        offset, _ = deform.predict_offsets(x)
    dilation = effective_dilation(offset)
    assert torch.corrcoef(torch.stack([dilation, scale]))[0, 1] > 0.8
    assert error < 0.35
