"""The networks of msracver/Deformable-ConvNets, written layer by layer from its symbols.

They are slow and obvious, and run on a dictionary of tensors with the names of its checkpoints.
Nothing here uses the converter or this package's operators. Boxes are inclusive: (x1, y1, x2, y2)
has the width x2 - x1 + 1. Images are RGB minus the mean.

Sources: {rfcn,faster_rcnn,fpn,deeplab}/symbols, rfcn/operator_py/proposal.py,
fpn/operator_py/{pyramid_proposal,fpn_roi_pooling}.py,
lib/rpn/generate_anchor.py, lib/bbox/bbox_transform.py, {rfcn,deeplab}/core/tester.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from checkpoint.mxnet_operators import (
    BINS,
    STRIDE,
    deformable_conv,
    deformable_psroi_pool,
    max_pool_full,
    psroi_pool,
    roi_max_pool,
)

MEAN = (123.15, 115.90, 103.06)  # RGB


@dataclass
class Network:
    """Sizes that the symbols fix and that a test reduces.

    kind: "rfcn", "faster_rcnn", "fpn", "deeplab" or "imagenet".
    width: channels of res2's 3x3 convolutions, 64 as released; the others follow.
    classes: number of classes, background included.
    """

    kind: str
    deform: bool
    units: tuple = (3, 4, 23, 3)
    width: int = 64
    reduced: int = 1024
    rpn_channels: int = 512
    hidden: int = 1024
    classes: int = 21
    scales: tuple = (8, 16, 32)
    ratios: tuple = (0.5, 1, 2)
    rois: int = 300  # proposals that reach the second stage

    @property
    def offset_groups(self):
        return 1 if self.kind == "deeplab" else 4

    @property
    def res5_dilation(self):
        return 1 if self.kind in ("imagenet", "fpn") else 2

    @property
    def offset_dilation(self):
        return 2 if self.kind in ("rfcn", "faster_rcnn") else 1

    @property
    def rpn_conv(self):
        return "rpn_conv" if self.kind == "fpn" else "rpn_conv_3x3"

    def is_deformable(self, block):
        """Whether the 3x3 convolution of a block, e.g. "4b22", is."""
        last = {f"{stage}b{self.units[stage - 2] - 1}" for stage in (3, 4)}
        return self.deform and (block[0] == "5" or self.kind == "fpn" and block in last)

    def blocks(self):
        """(name as in "4b22", stage, whether it is the first) of every block."""
        for stage, count in enumerate(self.units, start=2):
            for i in range(count):
                name = "abc"[i] if count == 3 else f"b{i}" if i else "a"
                yield f"{stage}{name}", stage, i == 0


# ---- Parameters ----------------------------------------------------------------------------------


def shapes(net: Network) -> dict[str, tuple]:
    """{name without its last part: shape of its weight} of convolutions and linear layers."""
    layers = {"conv1": (net.width, 3, 7, 7)}
    channels = net.width
    for name, stage, first in net.blocks():
        middle = net.width * 2 ** (stage - 2)
        if first:
            layers[f"res{name}_branch1"] = (4 * middle, channels, 1, 1)
        layers[f"res{name}_branch2a"] = (middle, channels, 1, 1)
        if net.is_deformable(name):
            layers[f"res{name}_branch2b_offset"] = (18 * net.offset_groups, middle, 3, 3)
        layers[f"res{name}_branch2b"] = (middle, middle, 3, 3)
        layers[f"res{name}_branch2c"] = (4 * middle, middle, 1, 1)
        channels = 4 * middle
    anchors = len(net.scales) * len(net.ratios)
    if net.kind == "imagenet":
        layers["fc1000"] = (1000, channels)
    elif net.kind == "deeplab":
        layers["fc6"] = (net.hidden, channels, 1, 1)
        layers["score"] = (net.classes, net.hidden, 1, 1)
    else:
        inputs = net.reduced if net.kind == "fpn" else channels // 2
        layers[net.rpn_conv] = (net.rpn_channels, inputs, 3, 3)
        layers["rpn_cls_score"] = (2 * anchors, net.rpn_channels, 1, 1)
        layers["rpn_bbox_pred"] = (4 * anchors, net.rpn_channels, 1, 1)
    if net.kind in ("rfcn", "faster_rcnn"):
        layers["conv_new_1"] = (net.reduced, channels, 1, 1)
    if net.kind == "fpn":
        layers["fpn_p6"] = (net.reduced, channels, 3, 3)
        for level in (2, 3, 4, 5):
            layers[f"fpn_p{level}_1x1"] = (net.reduced, net.width * 2**level, 1, 1)
            layers[f"fpn_p{level}"] = (net.reduced, net.reduced, 3, 3)
            if net.deform:
                layers[f"offset_p{level}"] = (2 * BINS**2, net.reduced * BINS**2)
    if net.kind == "rfcn":
        layers["rfcn_cls"] = (BINS**2 * net.classes, net.reduced, 1, 1)
        layers["rfcn_bbox"] = (BINS**2 * 8, net.reduced, 1, 1)
        if net.deform:
            layers["rfcn_cls_offset_t"] = (2 * BINS**2 * net.classes, net.reduced, 1, 1)
            layers["rfcn_bbox_offset_t"] = (2 * BINS**2, net.reduced, 1, 1)
    if net.kind in ("faster_rcnn", "fpn"):
        pooled = net.reduced * BINS**2
        if net.deform and net.kind == "faster_rcnn":
            layers["offset"] = (2 * BINS**2, pooled)
        layers["fc_new_1"] = (net.hidden, pooled)
        layers["fc_new_2"] = (net.hidden, net.hidden)
        layers["cls_score"] = (net.classes, net.hidden)
        layers["bbox_pred"] = (4 * net.classes, net.hidden)
    return layers


def random_params(net: Network, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint as core/callback.py writes it, of random float32 values.

    Offsets span several cells and parts, scores are far from uniform, and boxes leave the image.
    """
    g = torch.Generator().manual_seed(seed)
    params = {}

    def uniform(n, low, high):
        return torch.rand(n, generator=g) * (high - low) + low

    gains = {"offset": 0.5, "rpn_cls_score": 0.5, "rpn_bbox_pred": 0.1, "rfcn_bbox": 0.5}
    gains |= {"bbox_pred": 0.2, "cls_score": 0.3}
    if net.kind == "fpn":  # its large anchors must not leave its small image
        gains |= {"rpn_bbox_pred": 0.02, "bbox_pred": 0.05, "cls_score": 0.1}
    gains |= {f"offset_p{level}": 0.5 for level in (2, 3, 4, 5)}
    for name, shape in shapes(net).items():
        gain = 0.5 if "_offset" in name else gains.get(name, 1.0)
        std = gain * math.sqrt(2 / math.prod(shape[1:]))
        params[f"arg:{name}_weight"] = torch.randn(shape, generator=g) * std
        if name == "rpn_cls_score":  # no anchor is the best everywhere
            params[f"arg:{name}_weight"] -= params[f"arg:{name}_weight"].mean(dim=1, keepdim=True)
        if name != "conv1" and not name.startswith("res") or name.endswith("offset"):
            params[f"arg:{name}_bias"] = torch.randn(shape[0], generator=g) * 0.3 * gain
            continue
        norm = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
        scale = 1e4 if name == "conv1" else 1.0
        shrink = 0.2 if name.endswith("2c") else 1.0
        params[f"arg:{norm}_gamma"] = uniform(shape[0], 0.6, 1.4) * shrink
        params[f"arg:{norm}_beta"] = uniform(shape[0], -0.3, 0.3)
        params[f"aux:{norm}_moving_mean"] = uniform(shape[0], -0.3, 0.3) * scale**0.5
        params[f"aux:{norm}_moving_var"] = uniform(shape[0], 0.5, 2.0) * scale
    if net.kind in ("rfcn", "faster_rcnn", "fpn"):
        name = "rfcn_bbox" if net.kind == "rfcn" else "bbox_pred"
        bins = BINS**2 if net.kind == "rfcn" else 1
        for part in ("weight", "bias"):
            x = params[f"arg:{name}_{part}"]
            stds = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(len(x) // bins // 4)
            stds = stds.repeat_interleave(bins).view(-1, *[1] * (x.dim() - 1))
            params[f"arg:{name}_{part}_test"] = x * stds
    if net.kind == "deeplab":
        up = [1 - abs(i / 16 - 31 / 32) for i in range(32)]
        kernel = torch.tensor([[a * b for a in up] for b in up])
        params["arg:upsampling_weight"] = kernel.repeat(net.classes, 1, 1, 1)
    return params


# ---- Layers --------------------------------------------------------------------------------------


class Layers:
    """The layers of the symbols, called by name, in float64."""

    def __init__(self, params):
        self.params = {name: value.double() for name, value in params.items()}

    def conv(self, x, name, **kwargs):
        bias = self.params.get(f"arg:{name}_bias")
        return F.conv2d(x, self.params[f"arg:{name}_weight"], bias, **kwargs)

    def linear(self, x, name):
        return F.linear(
            x.flatten(1), self.params[f"arg:{name}_weight"], self.params[f"arg:{name}_bias"]
        )

    def norm(self, x, name):
        gamma, beta, mean, var = (
            self.params[key.format(name)].view(-1, 1, 1)
            for key in ("arg:{}_gamma", "arg:{}_beta", "aux:{}_moving_mean", "aux:{}_moving_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    def conv_norm(self, x, name, **kwargs):
        return self.norm(self.conv(x, name, **kwargs), name.replace("res", "bn"))

    def resnet(self, image, net: Network):
        """(1, 3, H, W) -> {stage: its map}."""
        x = self.norm(self.conv(image, "conv1", stride=2, padding=3), "bn_conv1").relu()
        x = max_pool_full(x)
        features = {}
        for name, stage, first in net.blocks():
            stride = 2 if first and stage in (3, 4) else 1
            dilation = net.res5_dilation if stage == 5 else 1
            if stage == 5 and first:
                stride = 2 // net.res5_dilation
            short = self.conv_norm(x, f"res{name}_branch1", stride=stride) if first else x
            x = self.conv_norm(x, f"res{name}_branch2a", stride=stride).relu()
            layer = f"res{name}_branch2b"
            if net.is_deformable(name):
                d = net.offset_dilation
                offset = self.conv(x, f"{layer}_offset", padding=d, dilation=d)
                weight = self.params[f"arg:{layer}_weight"]
                x = self.norm(
                    deformable_conv(x, offset, weight, net.offset_groups, dilation),
                    f"bn{name}_branch2b",
                )
            else:
                x = self.conv_norm(x, layer, padding=dilation, dilation=dilation)
            x = (self.conv_norm(x.relu(), f"res{name}_branch2c") + short).relu()
            features[stage] = x
        return features

    def pyramid(self, stages):
        """{stage: map} -> {stride: map} of p2 to p6."""
        maps, above = {}, 0
        for level in (5, 4, 3, 2):
            above = self.conv(stages[level], f"fpn_p{level}_1x1") + above
            maps[2**level] = self.conv(above, f"fpn_p{level}", padding=1)
            above = above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return maps | {64: self.conv(stages[5], "fpn_p6", stride=2, padding=1)}


# ---- Boxes ---------------------------------------------------------------------------------------


def base_anchors(net: Network, stride):
    """(A, 4), ordered by ratio, then by scale."""
    anchors = []
    for ratio in net.ratios:
        w = round(math.sqrt(stride**2 / ratio))
        h = round(w * ratio)
        for scale in net.scales:
            half = [(w * scale - 1) / 2, (h * scale - 1) / 2]
            centre = (stride - 1) / 2
            anchors.append([centre - half[0], centre - half[1], centre + half[0], centre + half[1]])
    return torch.tensor(anchors, dtype=torch.float64)


def decode(boxes, deltas):
    """boxes (R, 4), deltas (R, 4 * n) -> (R, n, 4)."""
    w, h = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    x, y = boxes[:, 0] + 0.5 * (w - 1), boxes[:, 1] + 0.5 * (h - 1)
    dx, dy, dw, dh = deltas.unflatten(1, (-1, 4)).permute(2, 1, 0)
    x, y, w, h = dx * w + x, dy * h + y, dw.exp() * w, dh.exp() * h
    corners = [x - 0.5 * (w - 1), y - 0.5 * (h - 1), x + 0.5 * (w - 1), y + 0.5 * (h - 1)]
    return torch.stack(corners, dim=2).transpose(0, 1)


def clip(boxes, size):
    limit = boxes.new_tensor([size[1] - 1, size[0] - 1] * 2)
    return torch.minimum(boxes, limit).clamp(min=0)


def nms(boxes, scores, threshold):
    order = scores.argsort(descending=True).tolist()
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    keep = []
    while order:
        i = order.pop(0)
        keep.append(i)
        if not order:
            break
        rest = torch.tensor(order)
        first = torch.maximum(boxes[i, :2], boxes[rest, :2])
        last = torch.minimum(boxes[i, 2:], boxes[rest, 2:])
        inter = (last - first + 1).clamp(min=0).prod(dim=1)
        order = rest[inter / (areas[i] + areas[rest] - inter) <= threshold].tolist()
    return keep


# ---- Networks ------------------------------------------------------------------------------------


def level_proposals(layers: Layers, net: Network, x, stride, size):
    """Object probabilities (A, Hf, Wf) of a map, and its boxes with their probabilities."""
    x = layers.conv(x, net.rpn_conv, padding=1).relu()
    scores, deltas = layers.conv(x, "rpn_cls_score"), layers.conv(x, "rpn_bbox_pred")
    _, _, rows, columns = scores.shape
    # Reshape (0, 2, -1, 0): one long column of cells for the background, one for objects.
    probs = scores.reshape(1, 2, -1, columns).softmax(dim=1).reshape(scores.shape)
    objects = probs[0, scores.shape[1] // 2 :]
    height, width = size[0] // stride, size[1] // stride
    shift_y, shift_x = torch.meshgrid(
        torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij"
    )
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)
    anchors = (shifts[:, :, None] + base_anchors(net, stride)).view(-1, 4)
    deltas = deltas[0, :, :height, :width].permute(1, 2, 0).reshape(-1, 4)
    ranked = objects[:, :height, :width].permute(1, 2, 0).flatten()
    return objects, clip(decode(anchors, deltas)[:, 0], size), ranked


def proposals(layers: Layers, net: Network, maps, size):
    """Object probabilities per level of {stride: map}, and the best boxes of all levels with their
    probabilities."""
    levels = [level_proposals(layers, net, x, stride, size) for stride, x in maps.items()]
    boxes, ranked = (torch.cat([level[i] for level in levels]) for i in (1, 2))
    best = ranked.argsort(descending=True)[: 12000 if net.kind == "fpn" else 6000]
    limit = 2000 if net.kind == "fpn" else 300
    keep = best[nms(boxes[best], ranked[best], 0.7)[:limit]]
    return [level[0] for level in levels], boxes[keep], ranked[keep]


def detect(params, net: Network, image):
    """Run the test network and core/tester.py's post-processing on one image (1, 3, H, W)."""
    layers = Layers(params)
    # utils/load_model.py, process=True: the test copies replace their originals.
    for name in [name for name in layers.params if name.endswith("_test")]:
        layers.params[name.removesuffix("_test")] = layers.params.pop(name)
    size = image.shape[2:]
    out = {}
    stages = layers.resnet(image, net)
    if net.kind == "fpn":
        x = layers.pyramid(stages)
        out["maps"] = dict(sorted(x.items()))
    else:
        x = layers.conv(stages[5], "conv_new_1").relu()
        out["maps"] = {STRIDE: stages[4]}
    out["rpn_prob"], out["proposals"], out["scores"] = proposals(layers, net, out["maps"], size)
    out["rois"] = rois = out["proposals"][: net.rois]
    heads = {"rfcn": _rfcn, "faster_rcnn": _faster_rcnn, "fpn": fpn_heads}[net.kind]
    scores, deltas = heads(layers, net, x, rois)
    out["probs"] = scores.softmax(dim=1)
    out["boxes"] = clip(decode(rois, deltas), size)
    return out


def _rfcn(layers, net, x, rois):
    cls, bbox = layers.conv(x, "rfcn_cls"), layers.conv(x, "rfcn_bbox")
    if not net.deform:
        pooled = psroi_pool(cls, rois, net.classes), psroi_pool(bbox, rois, 8)
    else:
        cls_t = layers.conv(x, "rfcn_cls_offset_t")
        bbox_t = layers.conv(x, "rfcn_bbox_offset_t")
        cls_offset = deformable_psroi_pool(cls_t, rois, None, 2 * net.classes, BINS)
        bbox_offset = deformable_psroi_pool(bbox_t, rois, None, 2, BINS)
        pooled = (
            deformable_psroi_pool(cls, rois, cls_offset, net.classes, BINS),
            deformable_psroi_pool(bbox, rois, bbox_offset, 8, BINS),
        )
    return [p.mean(dim=(2, 3)) for p in pooled]


def _pool(layers, net, x, rois, offset="offset", stride=STRIDE):
    if not net.deform:
        return roi_max_pool(x, rois, stride)
    pooled = deformable_psroi_pool(x, rois, None, net.reduced, 1, stride)
    trans = layers.linear(pooled, offset).view(-1, 2, BINS, BINS)
    return deformable_psroi_pool(x, rois, trans, net.reduced, 1, stride)


def _faster_rcnn(layers, net, x, rois):
    return _two_fc(layers, _pool(layers, net, x, rois))


def fpn_heads(layers, net, maps, rois):
    """Every RoI is pooled from its level, which has its own offset layer."""
    sizes = rois[:, 2:] - rois[:, :2] + 1
    levels = (4 + (sizes.prod(dim=1).sqrt() / 224).log2().floor()).clamp(2, 5)
    pooled = torch.cat(
        [
            _pool(layers, net, maps[2**level], roi[None], f"offset_p{level}", 2**level)
            for roi, level in zip(rois, levels.long().tolist(), strict=True)
        ]
    )
    return _two_fc(layers, pooled)


def _two_fc(layers, pooled):
    x = layers.linear(pooled, "fc_new_1").relu()
    x = layers.linear(x, "fc_new_2").relu()
    return layers.linear(x, "cls_score"), layers.linear(x, "bbox_pred")


def detections(out, net: Network, threshold=0.001, nms_threshold=0.3, limit=300):
    """(D, 6) of x1, y1, x2, y2, probability, class from 1 on, best first."""
    found = []
    for c in range(1, net.classes):
        keep = (out["probs"][:, c] > threshold).nonzero()[:, 0]
        scores = out["probs"][keep, c]
        boxes = out["boxes"][keep, 1 if net.kind == "rfcn" else c]
        for i in nms(boxes, scores, nms_threshold):
            found.append([*boxes[i].tolist(), scores[i].item(), c])
    return torch.tensor(sorted(found, key=lambda d: -d[4])[:limit], dtype=torch.float64)


def segment(params, net: Network, image):
    """Class scores (1, classes, H, W) before the softmax."""
    layers = Layers(params)
    x = layers.resnet(image, net)[5]
    x = layers.conv(layers.conv(x, "fc6").relu(), "score")
    kernel = layers.params["arg:upsampling_weight"]
    x = F.conv_transpose2d(x, kernel, stride=STRIDE, groups=net.classes)
    return x[:, :, 8 : 8 + image.shape[2], 8 : 8 + image.shape[3]]
