"""A number for every filter of a layer, as a map over the original image."""

from typing import NamedTuple

import torch

from .record import ConvOffsets


class LayerMap(NamedTuple):
    """Values of a layer's filters on one image.

    values: (H_out, W_out), NaN where a filter is beyond the image.
    cell: size (y, x) of a cell in original image pixels.
    """

    values: torch.Tensor
    cell: tuple[float, float]


def layer_map(values: torch.Tensor, centers, image_size) -> LayerMap:
    """Map of values (H_out, W_out) of the filters at `centers`, see `filter_centers`.

    Args:
        image_size: (height, width).
    """
    y, x = centers
    beyond = (y >= image_size[0])[:, None] | (x >= image_size[1])
    return LayerMap(
        values.masked_fill(beyond, torch.nan), tuple(2 * axis[0].item() for axis in centers)
    )


def filter_centers(conv: ConvOffsets, input_size, pixel) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of all filters of a layer, y (H_out,) and x (W_out,), in original image pixels.

    Args:
        input_size: (H, W) of the network input, padding included.
        pixel: (y, x) original image pixels per network input pixel.
    """
    return tuple(
        (torch.arange(n) + 0.5) * total / n * scale
        for n, total, scale in zip(conv.output_size, input_size, pixel, strict=True)
    )
