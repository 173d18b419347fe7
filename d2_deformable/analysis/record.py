"""A forward pass over one image, with what the deformable layers predict in it.

`inspect_image` runs a network; `record_offsets` records a pass that its caller runs.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from ..layers import DeformConv2d, OffsetOutput
from ..modeling import DeformROIPooler, RFCNOutputLayers
from .layer_order import layers_below


@dataclass(frozen=True)
class ConvOffsets:
    """The offsets that one `DeformConv2d` predicted for one image.

    name: of the layer in its model.
    offset: (G, taps, 2, H_out, W_out) of (dy, dx) in pixels of the layer's input map.
    mask: (G, taps, H_out, W_out), or None when not modulated.
    input_size: (H, W) of the layer's input map.
    kernel_size, stride, padding, dilation: pairs (y, x).
    """

    name: str
    offset: torch.Tensor
    mask: torch.Tensor | None
    input_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(self.offset.shape[-2:])


@dataclass(frozen=True)
class PartOffsets:
    """Placement of the parts of one deformable RoI pooling layer in one image.

    predict: maps boxes (R, 4) in network input pixels to normalised shifts (R, classes, 2, k, k) of
        (dy, dx), and to 1 / stride (R,) of the feature map that each box is pooled from. It calls
        the layer: the shifts that a forward pass predicts are of proposals, and figure 6 shows
        those of detected boxes, which the pass has not pooled.
    num_classes: sets of shifts, background included; 1 when all classes share one.
    gamma, round_rois: see `d2_deformable.ops.deform_roi_pool`.
    min_size: see `d2_deformable.ops.geometry.roi_boxes`.
    """

    name: str
    num_classes: int
    predict: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    gamma: float
    round_rois: bool
    min_size: float | None


@dataclass
class OffsetRecord:
    """Result of `record_offsets`: layers in the order in which they ran.

    A layer that runs on several maps, in a head on the levels of a pyramid, is there once for each.

    input_size: (H, W) of the network input, padding included.
    below: see `layers_below`; for a missing layer, all that ran before it count as below it.
    """

    convs: list[ConvOffsets] = field(default_factory=list)
    pools: list[PartOffsets] = field(default_factory=list)
    input_size: tuple[int, int] = (0, 0)
    below: dict[str, set[str]] = field(default_factory=dict)

    def stack(self, num_layers: int) -> list[ConvOffsets]:
        """At most `num_layers` convolutions on one path up to the last that ran, lowest first.

        It is a path through the backbone. Of parallel branches, it holds the one that ran last.
        If only heads have such layers, it is the last of those.
        """
        path = []
        runs = list(self.first_runs().values()) if self.below else self.convs
        convs = [conv for conv in runs if conv.name.startswith("backbone.")]
        for conv in reversed(convs or runs):
            off_path = path and conv.name not in self.below.get(path[-1].name, {conv.name})
            if len(path) < num_layers and not off_path:
                path.append(conv)
        return path[::-1]

    def first_runs(self) -> dict[str, ConvOffsets]:
        """The first run of each layer, by its name: in a head on a pyramid, its finest map."""
        runs = {}
        for conv in self.convs:
            runs.setdefault(conv.name, conv)
        return runs


@contextmanager
def record_offsets(model: nn.Module, plain=()):
    """Record the deformable layers of `model` while it runs on one image.

    Convolutions that read crops of single RoIs, such as those of a mask head, are left out: their
    maps are not of the image.

    Args:
        plain: names of plain convolutions to record as well, with offsets of zero.

    Yields:
        an `OffsetRecord`, filled by the forward pass.
    """
    record = OffsetRecord()

    def on_backbone(module, args):
        if len(args[0]) != 1:
            raise ValueError(f"record_offsets takes one image at a time, got {len(args[0])}")
        record.input_size = tuple(args[0].shape[-2:])

    def on_prediction(name, conv):
        def hook(_, args, prediction):
            if len(args[2]) == 1:  # otherwise a batch of crops
                record.convs.append(_conv_offsets(name, conv, args[2], *prediction))

        return hook

    def on_plain_conv(name):
        def hook(conv, args, output):
            taps = conv.kernel_size[0] * conv.kernel_size[1]
            zeros = output.new_zeros(1, 1, 1, 1).expand(1, 2 * taps, *output.shape[2:])
            record.convs.append(_conv_offsets(name, conv, args[0], zeros))

        return hook

    def on_predictor(name):
        return lambda predictor, args: record.pools.extend(_predictor_parts(name, predictor, *args))

    def on_pooler(name):
        return lambda layer, args: record.pools.append(_pooler_parts(name, layer, *args))

    with ExitStack() as stack:

        def keep(handle):
            stack.callback(handle.remove)

        keep(model.backbone.register_forward_pre_hook(on_backbone))
        for name, module in model.named_modules():
            if isinstance(module, DeformConv2d) and not name.startswith("roi_heads."):
                output = module.offset_prediction
                keep(output.register_forward_hook(on_prediction(name, module)))
            elif name in plain:
                keep(module.register_forward_hook(on_plain_conv(name)))
            elif isinstance(module, RFCNOutputLayers):
                keep(module.register_forward_pre_hook(on_predictor(name)))
            elif isinstance(module, DeformROIPooler):
                keep(module.register_forward_pre_hook(on_pooler(name)))
        yield record


@contextmanager
def zero_offsets(model: nn.Module):
    """Let all deformable layers of `model` sample without offsets: the masks stay."""

    def hook(output, args, prediction):
        return prediction._replace(offset=torch.zeros_like(prediction.offset))

    outputs = [module for module in model.modules() if isinstance(module, OffsetOutput)]
    handles = [output.register_forward_hook(hook) for output in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _conv_offsets(name, layer, x, offset, mask=None):
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return ConvOffsets(
        name=name,
        offset=offset[0].unflatten(0, (-1, taps, 2)).cpu(),
        mask=None if mask is None else mask[0].unflatten(0, (-1, taps)).cpu(),
        input_size=tuple(x.shape[-2:]),
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
    )


def _predictor_parts(name, predictor, x, _):
    for part in ("cls_score", "bbox_pred"):
        layer = getattr(predictor, part)
        if layer.offset_maps is None:
            continue

        def predict(boxes, layer=layer):
            first = x if isinstance(x, torch.Tensor) else x[0]
            offset, scale = predictor.predict_offsets(layer, x, [Boxes(boxes.to(first))])
            return offset.unflatten(1, (-1, 2)), scale

        sampling = layer.roi_sampling
        yield PartOffsets(
            f"{name}.{part}",
            layer.offset_classes,
            predict,
            layer.gamma,
            sampling.round_rois,
            sampling.min_size,
        )


def _pooler_parts(name, pooler, x, _):
    def predict(boxes):
        offset, scale = pooler.predict_offsets(x, [Boxes(boxes.to(x[0]))])
        return offset[:, None], scale

    first = pooler.level_pools[0]
    sampling = first.roi_sampling
    return PartOffsets(name, 1, predict, first.gamma, sampling.round_rois, sampling.min_size)


@dataclass(frozen=True)
class Inspection:
    """One image, what was detected in it, and where the network sampled.

    instances: detections in original image pixels; None if the model is not a detector.
    labels: the class of every original image pixel, (height, width), if the model segments.
    image_size: (height, width) of the original image.
    pixel: (y, x) original image pixels per network input pixel.
    """

    record: OffsetRecord
    instances: Instances | None
    image_size: tuple[int, int]
    pixel: tuple[float, float]
    labels: torch.Tensor | None = None


@torch.no_grad()
def inspect_image(model: nn.Module, inputs: dict) -> Inspection:
    """Run `model` in evaluation mode on one image of Detectron2's input format.

    Args:
        inputs: "image" (C, H, W), resized, and "height", "width" of the original image; also
            "proposals" if the network has no RPN.

    Raises:
        ValueError: the network needs proposals and gets none.
    """
    if needs_proposals(model) and "proposals" not in inputs:
        raise ValueError(
            "this network detects on fixed proposals, and the image comes with none: give it its "
            "own RPN (MODEL.PROPOSAL_GENERATOR.NAME RPN MODEL.LOAD_PROPOSALS False)"
        )
    resized = tuple(inputs["image"].shape[-2:])
    size = (inputs.get("height", resized[0]), inputs.get("width", resized[1]))
    seen = []
    keep = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    training = model.training
    model.eval()
    try:
        with record_offsets(model) as record:
            output = model([inputs])[0]
        keep.remove()
        names = [conv.name for conv in record.convs if conv.name.startswith("backbone.")]
        if len(names) > 1:
            layers = {name: model.get_submodule(name) for name in names}
            record.below = layers_below(model.backbone, layers, seen[0])
        # Which layers of the heads feed each other is not known.
        heads = {conv.name for conv in record.convs} - set(names)
        record.below |= dict.fromkeys(heads, set())
    finally:
        keep.remove()
        model.train(training)
    instances, logits = output.get("instances"), output.get("sem_seg")
    return Inspection(
        record,
        None if instances is None else instances.to("cpu"),
        size,
        (size[0] / resized[0], size[1] / resized[1]),
        None if logits is None else logits.argmax(dim=0).cpu(),
    )


def needs_proposals(model: nn.Module) -> bool:
    """Whether `model` is a detector without an RPN."""
    return hasattr(model, "roi_heads") and getattr(model, "proposal_generator", None) is None
