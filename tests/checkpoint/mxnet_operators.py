"""The operators of msracver/Deformable-ConvNets that PyTorch lacks, slow and obvious.

They use nothing of this package. Boxes are inclusive: (x1, y1, x2, y2) has the width x2 - x1 + 1.

Sources: rfcn/operator_cxx, and MXNet's ROIPooling and Pooling.
"""

import math

import torch
import torch.nn.functional as F

STRIDE = 16
BINS = 7


def max_pool_full(x):
    """3x3, stride 2, no padding, pooling_convention "full": the last window may be cut off."""
    size = [2 * math.ceil((n - 3) / 2) + 3 for n in x.shape[2:]]
    x = F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]), value=-math.inf)
    return x.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(4, 5))


def deformable_conv(x, offset, weight, groups, dilation=2):
    """The 2017 operator with a 3x3 kernel, padded by its dilation; x (1, C, H, W)."""
    _, channels, height, width = x.shape
    rows = torch.arange(height, dtype=x.dtype)[:, None]
    columns = torch.arange(width, dtype=x.dtype)
    out = 0
    for tap in range(9):
        samples = []
        for g, part in enumerate(x[0].chunk(groups)):
            dy, dx = offset[0, (g * 9 + tap) * 2 : (g * 9 + tap) * 2 + 2]
            y = rows + dilation * (tap // 3 - 1) + dy
            z = columns + dilation * (tap % 3 - 1) + dx
            inside = (y >= 0) & (z >= 0) & (y < height) & (z < width)
            samples.append(bilinear(part, slice(None), y, z) * inside)
        out = out + F.conv2d(torch.cat(samples)[None], weight[:, :, tap // 3, tap % 3, None, None])
    return out


def bilinear(x, channels, y, z):
    """`channels` of x (C, H, W) at rows y and columns z; neighbours are clamped to the map."""
    height, width = x.shape[1:]
    y, z = y.clamp(0, height - 1), z.clamp(0, width - 1)
    y0, z0 = y.floor().long(), z.floor().long()
    y1, z1 = (y0 + 1).clamp(max=height - 1), (z0 + 1).clamp(max=width - 1)
    fy, fz = y - y0, z - z0
    top = x[channels, y0, z0] * (1 - fz) + x[channels, y0, z1] * fz
    bottom = x[channels, y1, z0] * (1 - fz) + x[channels, y1, z1] * fz
    return top * (1 - fy) + bottom * fy


def c_round(x: float) -> int:
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def deformable_psroi_pool(x, rois, trans, output_dim, group, stride=STRIDE):
    """DeformablePSROIPooling with sample_per_part 4, trans_std 0.1, and no_trans if trans is None.

    x (1, C, H, W), rois (R, 4), trans (R, 2 * classes, 7, 7) of x, then y -> (R, output_dim, 7, 7).
    """
    height, width = x.shape[2:]
    out = x.new_zeros(len(rois), output_dim, BINS, BINS)
    cells = torch.arange(BINS, dtype=x.dtype)
    steps = torch.arange(4, dtype=x.dtype)
    place = torch.arange(BINS) * group // BINS
    for r, roi in enumerate(rois.tolist()):
        x1, y1 = (c_round(v) / stride - 0.5 for v in roi[:2])
        x2, y2 = ((c_round(v) + 1) / stride - 0.5 for v in roi[2:])
        w, h = max(x2 - x1, 0.1), max(y2 - y1, 0.1)
        for c in range(output_dim):
            moved_x = moved_y = x.new_zeros(BINS, BINS)
            if trans is not None:
                of_class = c // (output_dim // (trans.shape[1] // 2))
                moved_x = trans[r, 2 * of_class] * 0.1 * w
                moved_y = trans[r, 2 * of_class + 1] * 0.1 * h
            # (row of bins, column of bins, row of samples, column of samples)
            sy = (y1 + cells[:, None] * h / BINS + moved_y)[..., None, None]
            sx = (x1 + cells * w / BINS + moved_x)[..., None, None]
            sy = (sy + steps[:, None] * h / BINS / 4).expand(-1, -1, -1, 4)
            sx = (sx + steps * w / BINS / 4).expand(-1, -1, 4, -1)
            counted = (sx >= -0.5) & (sx <= width - 0.5) & (sy >= -0.5) & (sy <= height - 0.5)
            channels = (c * group + place[:, None]) * group + place
            values = bilinear(x[0], channels[..., None, None], sy, sx) * counted
            out[r, c] = values.sum(dim=(2, 3)) / counted.sum(dim=(2, 3)).clamp(min=1)
    return out


def psroi_pool(x, rois, output_dim):
    """PSROIPooling with 7 groups: x (1, output_dim * 49, H, W) -> (R, output_dim, 7, 7)."""
    height, width = x.shape[2:]
    out = x.new_zeros(len(rois), output_dim, BINS, BINS)
    for r, roi in enumerate(rois.tolist()):
        x1, y1 = (c_round(v) / STRIDE for v in roi[:2])
        x2, y2 = ((c_round(v) + 1) / STRIDE for v in roi[2:])
        w, h = max(x2 - x1, 0.1) / BINS, max(y2 - y1, 0.1) / BINS
        for i in range(BINS):
            for j in range(BINS):
                top, left = (max(math.floor(v), 0) for v in (i * h + y1, j * w + x1))
                bottom = min(math.ceil((i + 1) * h + y1), height)
                right = min(math.ceil((j + 1) * w + x1), width)
                if bottom > top and right > left:
                    maps = x[0, i * BINS + j :: BINS**2]
                    out[r, :, i, j] = maps[:, top:bottom, left:right].mean(dim=(1, 2))
    return out


def roi_max_pool(x, rois, stride=STRIDE):
    """ROIPooling: x (1, C, H, W) -> (R, C, 7, 7)."""
    height, width = x.shape[2:]
    out = x.new_zeros(len(rois), x.shape[1], BINS, BINS)
    for r, roi in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c_round(v / stride) for v in roi)
        w, h = max(x2 - x1 + 1, 1) / BINS, max(y2 - y1 + 1, 1) / BINS
        for i in range(BINS):
            for j in range(BINS):
                top, left = max(math.floor(i * h) + y1, 0), max(math.floor(j * w) + x1, 0)
                bottom = min(math.ceil((i + 1) * h) + y1, height)
                right = min(math.ceil((j + 1) * w) + x1, width)
                if bottom > top and right > left:
                    out[r, :, i, j] = x[0, :, top:bottom, left:right].amax(dim=(1, 2))
    return out
