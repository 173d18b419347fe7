"""Faster and Mask R-CNN with FPN by the names and conventions of mmdetection 3.3.0 and mmcv 2.2.0.

They are small, run inference on one image, and share no code with the networks that they are
compared with: convolutions are torchvision's, and deformable RoI pooling uses grid_sample.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms, deform_conv2d, roi_align

STRIDES = (4, 8, 16, 32, 64)


class DeformConv2dPack(nn.Conv2d):
    """mmcv's DCN, or DCNv2 if modulated."""

    def __init__(self, *args, groups, modulated, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        outputs = (3 if modulated else 2) * 9 * groups
        self.conv_offset = nn.Conv2d(self.in_channels, outputs, 3, self.stride, self.padding)
        self.modulated = modulated

    def forward(self, x):
        offset, mask = self.conv_offset(x), None
        if self.modulated:
            first, second, mask = offset.chunk(3, dim=1)
            offset, mask = torch.cat([first, second], dim=1), mask.sigmoid()
        return deform_conv2d(x, offset, self.weight, None, self.stride, self.padding, mask=mask)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, outputs, stride, style, dcn):
        super().__init__()
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        if dcn:
            self.conv2 = DeformConv2dPack(width, width, 3, stride=second, padding=1, **dcn)
        else:
            self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if self.downsample else x))


class BasicBlock(nn.Module):
    def __init__(self, inputs, width, outputs, stride, style, dcn):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet(nn.Module):
    def __init__(self, depth, stem, width, outputs, style, dcn):
        super().__init__()
        block, blocks = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}[depth]
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inputs = stem
        for i, n in enumerate(blocks):
            layers = []
            for j in range(n):
                stride = 2 if i and not j else 1
                layers.append(block(inputs, width, outputs, stride, style, dcn if i else None))
                inputs = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
            width, outputs = 2 * width, 2 * outputs

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        features = []
        for i in range(4):
            x = self.get_submodule(f"layer{i + 1}")(x)
            features.append(x)
        return features


class ConvModule(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x):
        return self.conv(x)


class FPN(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(n, outputs, 1) for n in inputs)
        self.fpn_convs = nn.ModuleList(ConvModule(outputs, outputs, 3, padding=1) for _ in inputs)

    def forward(self, features):
        maps = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:])
        maps = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]


class RPNHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, 3, 1)
        self.rpn_reg = nn.Conv2d(channels, 3 * 4, 1)

    def forward(self, x):
        x = F.relu(self.rpn_conv(x))
        return self.rpn_cls(x), self.rpn_reg(x)


def deform_roi_pool(input, rois, offset, k, scale, gamma=0.1):
    """mmcv's DeformRoIPool; offset (R, 2, k, k) is dx, then dy."""
    height, width = input.shape[2:]
    pooled = input.new_zeros(len(rois), input.shape[1], k, k)
    for r, roi in enumerate(rois):
        x0, y0, x1, y1 = roi[1:] * scale - 0.5
        roi_w, roi_h = x1 - x0, y1 - y0
        rows, columns = math.ceil(roi_h / k), math.ceil(roi_w / k)
        if rows * columns == 0:
            continue
        shift = input.new_zeros(2, k, k) if offset is None else offset[r]
        within_x, within_y = ((torch.arange(n) + 0.5) / n for n in (columns, rows))
        bins = torch.arange(k)
        x = x0 + gamma * roi_w * shift[0][:, :, None] + (bins[:, None] + within_x) * roi_w / k
        y = y0 + gamma * roi_h * shift[1][:, :, None] + (bins[:, None, None] + within_y) * roi_h / k
        x = x[:, :, None].expand(k, k, rows, columns).reshape(k * k, rows * columns)
        y = y[:, :, :, None].expand(k, k, rows, columns).reshape(k * k, rows * columns)
        inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=2)
        samples = F.grid_sample(
            input[int(roi[0])][None], grid[None], padding_mode="border", align_corners=True
        )
        pooled[r] = (samples * inside).mean(dim=3).view(-1, k, k)
    return pooled


class DeformRoIPoolPack(nn.Module):
    def __init__(self, channels, k, stride, modulated):
        super().__init__()
        self.k, self.scale = k, 1 / stride
        n, hidden = channels * k * k, 1024
        self.offset_fc = nn.Sequential(
            nn.Linear(n, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * k * k),
        )
        self.modulated = modulated
        if modulated:
            self.mask_fc = nn.Sequential(
                nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, k * k), nn.Sigmoid()
            )

    def forward(self, x, rois):
        plain = deform_roi_pool(x, rois, None, self.k, self.scale).flatten(1)
        offset = self.offset_fc(plain).view(-1, 2, self.k, self.k)
        pooled = deform_roi_pool(x, rois, offset, self.k, self.scale)
        return (
            pooled * self.mask_fc(plain).view(-1, 1, self.k, self.k) if self.modulated else pooled
        )


class RoIAlign(nn.Module):
    def __init__(self, k, stride):
        super().__init__()
        self.k, self.scale = k, 1 / stride

    def forward(self, x, rois):
        return roi_align(x, rois, self.k, self.scale, 0, True)


class SingleRoIExtractor(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.roi_layers = nn.ModuleList(layers)

    def forward(self, maps, rois):
        scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        levels = torch.log2(scale / 56 + 1e-6).floor().clamp(0, 3).long()
        k = self.roi_layers[0].k
        pooled = rois.new_zeros(len(rois), maps[0].shape[1], k, k)
        for i, layer in enumerate(self.roi_layers):
            pooled[levels == i] = layer(maps[i], rois[levels == i])
        return pooled


class BBoxHead(nn.Module):
    def __init__(self, inputs, hidden, classes):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)])
        self.fc_cls = nn.Linear(hidden, classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * classes)

    def forward(self, pooled):
        x = pooled.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    def __init__(self, inputs, channels, classes):
        super().__init__()
        widths = [inputs] + 4 * [channels]
        self.convs = nn.ModuleList(
            ConvModule(a, b, 3, padding=1) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.conv_logits = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_logits(F.relu(self.upsample(x)))


class RCNN(nn.Module):
    """FasterRCNN, or MaskRCNN if `mask` is true.

    Args:
        dcn: {"groups": int, "modulated": bool} for the convolutions in layer2 to layer4, or None.
        pool: "RoIAlign", "DeformRoIPoolPack" or "ModulatedDeformRoIPoolPack".
    """

    def __init__(
        self, *, depth=50, style="pytorch", dcn=None, pool="RoIAlign", mask=False, k=3, classes=3
    ):
        super().__init__()
        channels, outputs, masks = 16, 16, 14
        self.style = style
        self.backbone = ResNet(depth, 8, 8, outputs, style, dcn)
        self.neck = FPN([outputs * 2**i for i in range(4)], channels)
        self.rpn_head = RPNHead(channels)
        if pool == "RoIAlign":
            layers = [RoIAlign(k, stride) for stride in STRIDES[:4]]
        else:
            modulated = pool.startswith("Modulated")
            layers = [DeformRoIPoolPack(channels, k, stride, modulated) for stride in STRIDES[:4]]
        self.roi_head = nn.Module()
        self.roi_head.bbox_roi_extractor = SingleRoIExtractor(layers)
        self.roi_head.bbox_head = BBoxHead(channels * k * k, 16, classes)
        if mask:
            layers = [RoIAlign(masks, stride) for stride in STRIDES[:4]]
            self.roi_head.mask_roi_extractor = SingleRoIExtractor(layers)
            self.roi_head.mask_head = MaskHead(channels, 16, classes)
        self.eval()

    def features(self, image):
        """image: (3, H, W) BGR, 0..255, as mmdetection reads it; 32 must divide its sides."""
        mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        if self.style == "caffe":
            mean, std = mean[::-1], [1.0, 1.0, 1.0]
        else:
            image = image.flip(0)
        shape = (3, 1, 1)
        image = (image - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        return self.neck(self.backbone(image[None]))

    @torch.no_grad()
    def heads(self, image, boxes):
        """Outputs of the layers for each level and for boxes (R, 4)."""
        maps = self.features(image)
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
        scores, deltas = zip(*map(self.rpn_head, maps), strict=True)
        head = self.roi_head
        outputs = [*maps, *scores, *deltas, *head.bbox_head(head.bbox_roi_extractor(maps, rois))]
        if hasattr(head, "mask_head"):
            outputs.append(head.mask_head(head.mask_roi_extractor(maps, rois)))
        return outputs

    @torch.no_grad()
    def detect(self, image):
        """Boxes, scores and classes, best first."""
        size = image.shape[1:]
        maps = self.features(image)
        proposals, scores, levels = [], [], []
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            logits, deltas = self.rpn_head(x)
            score, order = logits[0].permute(1, 2, 0).flatten().sigmoid().sort(descending=True)
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            order = order[:1000]
            proposals.append(decode(anchors(x.shape[2:], stride)[order], deltas[order], size))
            scores.append(score[:1000])
            levels.append(torch.full_like(order, level))
        proposals, scores, levels = map(torch.cat, (proposals, scores, levels))
        filled = (proposals[:, 2:] > proposals[:, :2]).all(dim=1)
        proposals, scores, levels = (x[filled] for x in (proposals, scores, levels))
        keep = batched_nms(proposals, scores, levels, 0.7)[:1000]
        rois = F.pad(proposals[keep], (1, 0))
        head = self.roi_head
        logits, deltas = head.bbox_head(head.bbox_roi_extractor(maps, rois))
        scores = logits.softmax(dim=1)[:, :-1]
        deltas = deltas.view(len(rois), -1, 4) * torch.tensor([0.1, 0.1, 0.2, 0.2])
        boxes = decode(rois[:, None, 1:].expand_as(deltas), deltas, size)
        r, classes = (scores > 0.05).nonzero().unbind(1)
        boxes, scores = boxes[r, classes], scores[r, classes]
        keep = batched_nms(boxes, scores, classes, 0.5)[:100]
        return boxes[keep], scores[keep], classes[keep]


def anchors(size, stride):
    """(H * W * 3, 4) of scale 8 around whole multiples of the stride."""
    ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    half = torch.stack([8 * stride / ratios, 8 * stride * ratios], dim=1) / 2
    y, x = torch.meshgrid(*(torch.arange(n) * stride for n in size), indexing="ij")
    centre = torch.stack([x, y], dim=2).view(-1, 1, 2)
    return torch.cat([centre - half, centre + half], dim=2).view(-1, 4)


def decode(boxes, deltas, size):
    """DeltaXYWHBBoxCoder, clipped to the image (height, width)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    limit = abs(math.log(16 / 1000))
    centre = (low + high) / 2 + deltas[..., :2] * (high - low)
    half = (high - low) * deltas[..., 2:].clamp(-limit, limit).exp() / 2
    corners = torch.stack([centre - half, centre + half], dim=-2).clamp(min=0)
    return torch.minimum(corners, torch.tensor(size).flip(0)).flatten(-2)


def randomise(model: RCNN, image) -> None:
    """Randomise the weights so that offsets move samples.

    Batch norm statistics are those of the image, so that activations of every layer are near one.
    """
    generator = torch.Generator().manual_seed(0)
    scales = {"conv_offset": 0.3, "offset_fc.4": 3, "rpn_cls": 4, "rpn_reg": 0.3, "fc_cls": 4}
    for name, parameter in model.named_parameters():
        scale = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
        scale *= next((factor for part, factor in scales.items() if part in name), 1)
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        if ("bn" in name or "downsample.1" in name) and name.endswith("weight"):
            parameter.data = (0.2 if "bn3" in name else 0.8) + 0.2 * parameter.data
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad():
        model.features(image)
    model.eval()
