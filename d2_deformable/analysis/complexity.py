"""The cost of a network: parameters, FLOPs and time (paper table 4)."""

import statistics
import time

import numpy as np
import torch
from detectron2.data.transforms import AugInput
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from torch import nn

from ..data.augmentations import build_test_augmentations
from ..engine.offset_health import deformable_layers
from ..modeling import build_model
from .flops import count_macs, count_macs_by_torch


def count_parameters(module: nn.Module) -> int:
    """Count parameters, including the affine ones of frozen batch norms, which are buffers."""
    frozen = (m for m in module.modules() if isinstance(m, FrozenBatchNorm2d))
    affine = sum(m.weight.numel() + m.bias.numel() for m in frozen)
    return sum(p.numel() for p in module.parameters()) + affine


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Count the parameters of the model's parts and their "total".

    "offsets" counts those of the layers that predict offsets, which the parts include.
    """
    parts = {name: count_parameters(part) for name, part in model.named_children()}
    offsets = (
        child
        for layer in deformable_layers(model).values()
        for name, child in layer.named_children()
        if name in ("conv_offset", "offset_fc", "mask_fc", "offset_maps")
    )
    return {name: n for name, n in parts.items() if n} | {
        "total": count_parameters(model),
        "offsets": sum(map(count_parameters, offsets)),
    }


def count_parameters_of(cfg) -> int:
    """Count the parameters of the network of `cfg` without allocating it."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return count_parameters(build_model(cfg))


def random_model(cfg) -> nn.Module:
    """Build the network of `cfg` with random weights, in evaluation mode.

    Frozen batch norms are set to halve their input. Otherwise the residuals of a deep network would
    overflow float32, and NaNs would leave no proposals to process.
    """
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)
    return model


def count(model: nn.Module, inputs: list[dict]) -> dict:
    """Count parameters and FLOPs of one image (multiply-adds, by fvcore, and by torch to check)."""
    return {
        "input_size": list(inputs[0]["image"].shape[1:]),
        "parameters": parameters_by_part(model),
        "flops": count_macs(model, inputs),
        "flops_by_torch": count_macs_by_torch(model, inputs),
    }


def random_image(size) -> np.ndarray:
    """Make noise (height, width, 3) uint8; the same for the same size."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def image_as_tested(cfg, image: np.ndarray) -> dict:
    """Prepare an image as in testing with `cfg` (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST).

    If the network has no RPN, the input also gets as many random proposals as an RPN of `cfg` would
    keep (MODEL.RPN.POST_NMS_TOPK_TEST; 300 in the paper).
    """
    resized = AugInput(image)
    build_test_augmentations(cfg)(resized)
    tensor = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
    inputs = {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        inputs["proposals"] = random_proposals(tensor.shape[-2:], cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    return inputs


def random_proposals(size, n: int) -> Instances:
    """Make `n` boxes within an image of (height, width); the same for the same arguments."""
    height, width = size
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    return Instances(
        (height, width),
        proposal_boxes=Boxes(corners.flatten(1) * torch.tensor([width, height] * 2)),
        objectness_logits=torch.zeros(n),
    )


class Stopwatch:
    """Times one model of any architecture.

    The forward pass ends with the last module that returns only tensors: the box head of Faster
    R-CNN and R-FCN, or the head of class-aware RPN and DeepLab. The rest is post-processing: NMS,
    decoding, resizing. The RPN's own NMS is part of the forward pass, and so is detection before
    the mask head of Mask R-CNN.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.cuda = next(model.parameters()).is_cuda

    @torch.no_grad()
    def __call__(self, inputs: list[dict]) -> tuple[float, float]:
        """Measure seconds of the forward pass and of the whole run."""
        last = start = self._now()

        def on_module(module, args, output):
            nonlocal last
            if _holds_only_tensors(output):
                last = self._now()

        handles = [
            module.register_forward_hook(on_module)
            for module in self.model.modules()
            if module is not self.model
        ]
        try:
            start = self._now()
            self.model(inputs)
            end = self._now()
        finally:
            for handle in handles:
                handle.remove()
        return self._between(start, last), self._between(start, end)

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, end):
        if not self.cuda:
            return end - start
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


def _holds_only_tensors(output) -> bool:
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return all(map(_holds_only_tensors, output))
    return output is None or isinstance(output, torch.Tensor)


def time_interleaved(models: list, inputs: list[list[dict]], repeats: int, warm_up: int = 2):
    """Time models in turn, so that other load on the machine affects all of them equally.

    Args:
        models: in evaluation mode.
        inputs: the inputs of each model.
        repeats: number of timed rounds, after `warm_up` untimed ones.

    Returns:
        for each model {"forward": ..., "whole": ...} of {"median", "quartiles", "all"} in seconds.
    """
    watches = [Stopwatch(model) for model in models]
    rounds = [
        [watch(x) for watch, x in zip(watches, inputs, strict=True)]
        for _ in range(warm_up + repeats)
    ][warm_up:]
    return [
        {
            kind: _spread([of_models[m][k] for of_models in rounds])
            for k, kind in enumerate(("forward", "whole"))
        }
        for m in range(len(models))
    ]


def _spread(seconds):
    low, middle, high = (
        statistics.quantiles(seconds, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {"median": middle, "quartiles": [low, high], "all": seconds}
