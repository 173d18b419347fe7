"""Detectron2's inference without Python branches on the values of tensors.

A trace records the branch that its one image took, and torch.export refuses to choose. What stands
here gives what Detectron2's own functions give in evaluation mode, by masks and slices. It serves
Detectron2 0.5 and main.

`detectron2.export` has nothing that can be used instead. In 0.5 the package does not import: it
needs caffe2, which current versions of torch lack. In main, `TracingAdapter` flattens whatever a
model returns, where an exported file gives the tensors that `output_names` lists;
`patch_builtin_len` is the loop over `len` below; the other `patch_*` serve scripting, not tracing.
"""

import threading
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import Conv2d
from detectron2.structures import Boxes, Instances
from torch.nn.modules.utils import _pair

MODELING = "detectron2.modeling"
# Two threads, each putting back what it found, would leave Detectron2 changed for good.
_one_at_a_time = threading.RLock()


@contextmanager
def traceable():
    """Within it, Detectron2's inference can be traced and exported.

    One thread at a time is in it; what others run meanwhile sees the stand-ins too, but training
    must not.
    """
    replaced = {
        "torch.nn.functional.max_pool2d": _max_pool2d,
        f"{MODELING}.anchor_generator._create_grid_offsets": _grid_offsets,
        f"{MODELING}.poolers.convert_boxes_to_pooler_format": _rois,
        f"{MODELING}.proposal_generator.rpn.find_top_rpn_proposals": _top_proposals,
        f"{MODELING}.roi_heads.cascade_rcnn._ScaleGradient.apply": lambda x, scale: x,
        f"{MODELING}.roi_heads.fast_rcnn.fast_rcnn_inference_single_image": _detections,
        "d2_deformable.modeling.meta_arch.class_aware_rpn.top_indices": _top_indices,
        "d2_deformable.modeling.proposal_generator.find_top_rpn_proposals": _top_proposals,
        "d2_deformable.modeling.poolers.convert_boxes_to_pooler_format": _rois,
        "d2_deformable.modeling.roi_heads.rfcn.convert_boxes_to_pooler_format": _rois,
    }
    methods = {
        (Boxes, "__init__"): _init_boxes,
        (Boxes, "clip"): _clip,
        (Conv2d, "forward"): _conv2d,
        (Instances, "set"): _set,
    }
    with _one_at_a_time, ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        for name in ("fast_rcnn", "mask_head"):
            name = f"{MODELING}.roi_heads.{name}.len"
            stack.enter_context(mock.patch(name, _length, create=True))
        for (kind, name), method in methods.items():
            stack.enter_context(mock.patch.object(kind, name, method))
        yield


_pool = F.max_pool2d


def _max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **options):
    """As F.max_pool2d, whose strides have torch.export tell even sizes from odd ones."""
    if not torch.compiler.is_exporting():
        return _pool(x, kernel_size, stride, padding, dilation, ceil_mode, **options)
    step_y, step_x = _pair(kernel_size if stride is None else stride)
    if ceil_mode:
        x = F.pad(x, [0, step_x - 1, 0, step_y - 1], value=-torch.inf)
    return _pool(x, kernel_size, 1, padding, dilation, **options)[..., ::step_y, ::step_x]


def _grid_offsets(size, stride: int, offset: float, like):
    """x and y of the anchors' centres, (Hf * Wf,) each; `like`: a device or a tensor on it."""
    device = getattr(like, "device", like)
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + offset) * stride for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def _top_indices(scores, k: int):
    """Of the k highest scores of (R,), or of all; by a mask, as a slice would tell R > k apart."""
    order = scores.argsort(descending=True)
    return order[torch.arange(order.shape[0], device=order.device) < k]


def _top_proposals(
    proposals, logits, image_sizes, nms_thresh, pre_nms_topk, post_nms_topk, min_box_size, training
):
    """Of L levels, boxes (N, R, 4) and objectness (N, R): N Instances, best first."""
    results = []
    for n, image_size in enumerate(image_sizes):
        best = [_top_indices(x[n], pre_nms_topk) for x in logits]
        boxes = torch.cat([x[n][top] for x, top in zip(proposals, best, strict=True)])
        scores = torch.cat([x[n][top] for x, top in zip(logits, best, strict=True)])
        levels = torch.cat([torch.full_like(top, i) for i, top in enumerate(best)])
        valid = boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes = Boxes(boxes)
        boxes.clip(image_size)
        keep = valid & boxes.nonempty(threshold=min_box_size)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        keep = batched_nms(boxes.tensor, scores, levels, nms_thresh)[:post_nms_topk]
        results.append(
            Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=scores[keep])
        )
    return results


def _detections(boxes, scores, image_size, score_thresh, nms_thresh, topk_per_image):
    """Of boxes (R, 4) or (R, K * 4) and probabilities (R, K + 1): Instances and their rows."""
    valid = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1]
    rows, classes = ((scores > score_thresh) & valid[:, None]).nonzero().unbind(1)
    scores = scores[rows, classes]
    boxes = boxes.unflatten(1, (-1, 4))
    boxes = Boxes(boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes])
    boxes.clip(image_size)
    keep = batched_nms(boxes.tensor, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    found = Instances(
        image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep]
    )
    return found, rows[keep]


@torch.jit.script
def _scripted_nms(boxes, scores, classes, threshold: float):
    return torchvision.ops.batched_nms(boxes, scores, classes, threshold)


def batched_nms(boxes, scores, classes, threshold: float):
    """Rows of boxes (R, 4) that are kept, best first; boxes of different classes never compete.

    torch.export cannot choose between torchvision's ways for few and for many boxes: there the
    classes are moved apart, in float64, which rounds no coordinate.
    """
    if not torch.compiler.is_exporting():
        return _scripted_nms(boxes, scores, classes, threshold)
    boxes = boxes.double()
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    # Two boxes more, apart from all and last: exported, torchvision's nms must keep two or more.
    more = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    boxes = torch.cat([boxes + (classes * extent)[:, None], more])
    least = scores.new_full([2], -torch.inf)
    keep = torchvision.ops.nms(boxes, torch.cat([scores, least]).double(), threshold)
    return keep[keep < scores.shape[0]]


def _init_boxes(self, tensor):
    """As Boxes(tensor), for which zero boxes are a case of their own."""
    self.tensor = tensor.float()


def _clip(self, box_size):
    """As Boxes.clip, without the check for boxes that are not finite."""
    height, width = box_size
    x = self.tensor[:, 0::2].clamp(min=0).clamp(max=width)
    y = self.tensor[:, 1::2].clamp(min=0).clamp(max=height)
    self.tensor = torch.stack([x, y], dim=2).flatten(1)


def _rois(box_lists):
    """(R, 5), each (image index, x0, y0, x1, y1)."""
    return torch.cat(
        [
            torch.cat([torch.full_like(boxes.tensor[:, :1], i), boxes.tensor], dim=1)
            for i, boxes in enumerate(box_lists)
        ]
    )


def _conv2d(self, x):
    """As Conv2d.forward, which looks at the number of boxes in its input first."""
    x = self._conv_forward(x, self.weight, self.bias)
    x = x if self.norm is None else self.norm(x)
    return x if self.activation is None else self.activation(x)


def _length(x):
    """As len(), which makes an int of what is symbolic."""
    return x.__len__()


def _set(self, name, value):
    """As Instances.set, which compares numbers of boxes."""
    self._fields[name] = value
