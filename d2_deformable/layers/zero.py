"""Layers that start at zero and draw nothing from the global random state, and stacks that end so.

So, with the same seed, a deformable network starts from the weights of its plain twin, and a layer
that is built after a deformable one draws the same random numbers.
"""

from torch import nn


class ZeroConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose weight and bias start at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """`torch.nn.Linear` whose weight and bias start at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def fully_connected(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them; the last one starts at zero."""
    layers = []
    for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, ZeroLinear(sizes[-2], sizes[-1]))
