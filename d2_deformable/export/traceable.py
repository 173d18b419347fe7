"""Detectron2's inference without Python branches on the values of tensors.

A trace records the branch that its one image took, and torch.export refuses to choose a branch. The
functions here return what Detectron2's own functions return in evaluation mode, by means of masks
and slices. They work with Detectron2 0.5 and main.

`detectron2.export` has nothing to use instead. In 0.5 the package cannot be imported: it needs
caffe2, which current versions of torch lack. In main, `TracingAdapter` flattens whatever a model
returns, while an exported file returns the tensors that `output_names` lists. `patch_builtin_len`
is the loop over `len` below; the other `patch_*` functions are for scripting, not tracing.
"""

import threading
import warnings
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import Conv2d
from detectron2.modeling import anchor_generator
from detectron2.modeling.roi_heads import cascade_rcnn
from detectron2.structures import Boxes, Instances

from ..compat import require_private
from ..modeling import soft_nms

require_private(anchor_generator, "_create_grid_offsets")
require_private(cascade_rcnn, "_ScaleGradient")

MODELING = "detectron2.modeling"
# Two threads that each restore what they found could leave Detectron2 changed for good.
_one_at_a_time = threading.RLock()


@contextmanager
def traceable():
    """A context in which Detectron2's inference can be traced and exported.

    Only one thread at a time is inside. What other threads run meanwhile also uses the
    replacements: inference may, training must not.
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
        "d2_deformable.modeling.soft_nms.select": _soft_nms,
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
    """F.max_pool2d without strides, for which torch.export would tell even and odd sizes apart."""
    if not torch.compiler.is_exporting():
        return _pool(x, kernel_size, stride, padding, dilation, ceil_mode, **options)
    stride = kernel_size if stride is None else stride
    step_y, step_x = (stride, stride) if isinstance(stride, int) else stride
    if ceil_mode:
        x = F.pad(x, [0, step_x - 1, 0, step_y - 1], value=-torch.inf)
    return _pool(x, kernel_size, 1, padding, dilation, **options)[..., ::step_y, ::step_x]


def _grid_offsets(size, stride: int, offset: float, like):
    """x and y of the anchors' centres, (Hf * Wf,) each. `like` is a device or a tensor on it."""
    device = getattr(like, "device", like)
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + offset) * stride for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def _top_indices(scores, k: int):
    """Indices of the k highest of R scores, or of all if there are fewer, best first.

    By a mask, because a slice would make torch.export distinguish whether R > k.
    """
    order = scores.argsort(descending=True)
    return order[torch.arange(order.shape[0], device=order.device) < k]


def _top_proposals(
    proposals, logits, image_sizes, nms_thresh, pre_nms_topk, post_nms_topk, min_box_size, training
):
    """From boxes (N, R, 4) and objectness (N, R) of L levels to N Instances, best first."""
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
    """From boxes (R, 4) or (R, K * 4) and probabilities (R, K + 1) to Instances and their rows."""
    valid = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1]
    rows, classes = ((scores > score_thresh) & valid[:, None]).nonzero().unbind(1)
    scores = scores[rows, classes]
    # With a constant number of columns, because ONNX cannot infer it where there is no row.
    boxes = boxes.reshape(-1, int(boxes.shape[1]) // 4, 4)
    boxes = Boxes(boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes])
    boxes.clip(image_size)
    keep = batched_nms(boxes.tensor, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    found = Instances(
        image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep]
    )
    return found, rows[keep]


def _nms(boxes, scores, classes, threshold: float):
    return torchvision.ops.batched_nms(boxes, scores, classes, threshold)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # TorchScript itself is deprecated
    _scripted_nms = torch.jit.script(_nms)
    _scripted_soft_nms = torch.jit.script(soft_nms.select)


def batched_nms(boxes, scores, classes, threshold: float):
    """Rows of boxes (R, 4) that are kept, best first; boxes of different classes never compete.

    torchvision treats few and many boxes in two ways, and torch.export cannot choose between them.
    When exporting, the classes are therefore moved apart in float64, which rounds no coordinate.
    """
    if not torch.compiler.is_exporting():
        return _scripted_nms(boxes, scores, classes, threshold)
    boxes = boxes.double()
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    # Add two boxes apart from all others, with the lowest scores: in an exported program,
    # torchvision's nms must keep at least two boxes.
    more = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    boxes = torch.cat([boxes + (classes * extent)[:, None], more])
    least = scores.new_full([2], -torch.inf)
    keep = torchvision.ops.nms(boxes, torch.cat([scores, least]).double(), threshold)
    return keep[keep < scores.shape[0]]


def _soft_nms(boxes, scores, classes, linear, iou_thresh, sigma, min_score, most: int):
    """Same as `soft_nms.select`, whose loop a trace would unroll for its one image."""
    if not torch.compiler.is_exporting():
        return _scripted_soft_nms(
            boxes, scores, classes, linear, iou_thresh, sigma, min_score, most
        )
    # Add a box that is never selected, since there must be one to look at.
    boxes = torch.cat([boxes, boxes.new_zeros(1, 4)])
    classes = torch.cat([classes, classes.new_full([1], -1)])
    scores = torch.cat([scores, scores.new_full([1], -1.0)])
    areas = soft_nms.box_areas(boxes)
    places = torch.arange(scores.shape[0] if most < 0 else most, device=scores.device)

    def goes_on(n, order, kept, left):
        return (n < places.shape[0]) & (left.max() > min_score)

    def select_next(n, order, kept, left):
        best, at = left.max(0, keepdim=True)
        return (
            n + 1,
            torch.where(places == n, at, order),
            torch.where(places == n, best, kept),
            soft_nms.lowered(boxes, areas, classes, left, at, linear, iou_thresh, sigma),
        )

    start = places.new_zeros([]), torch.zeros_like(places), scores.new_zeros(places.shape), scores
    _, order, kept, _ = torch.while_loop(goes_on, select_next, start)
    some = kept > min_score
    return order[some], kept[some]


def _init_boxes(self, tensor):
    """Boxes(tensor) without its special case for zero boxes."""
    self.tensor = tensor.float()


def _clip(self, box_size):
    """Boxes.clip without the check that boxes are finite."""
    height, width = box_size
    x = self.tensor[:, 0::2].clamp(min=0).clamp(max=width)
    y = self.tensor[:, 1::2].clamp(min=0).clamp(max=height)
    self.tensor = torch.stack([x, y], dim=2).flatten(1)


def _rois(box_lists):
    """RoIs (R, 5), each (image index, x0, y0, x1, y1)."""
    return torch.cat(
        [
            torch.cat([torch.full_like(boxes.tensor[:, :1], i), boxes.tensor], dim=1)
            for i, boxes in enumerate(box_lists)
        ]
    )


def _conv2d(self, x):
    """Conv2d.forward without its check for an empty input."""
    x = torch.nn.Conv2d.forward(self, x)
    x = x if self.norm is None else self.norm(x)
    return x if self.activation is None else self.activation(x)


def _length(x):
    """len() that keeps symbolic sizes; the builtin converts them to int."""
    return x.__len__()


def _set(self, name, value):
    """Instances.set without its comparison of the numbers of boxes."""
    self.get_fields()[name] = value
