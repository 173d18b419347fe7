"""A Detectron2 network as a traceable function from one image to a few tensors."""

import copy

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN, SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..modeling import ClassAwareRPN
from .traceable import traceable
from .verify import are_rounding, differences

OURS = ("detectron2.", "d2_deformable.")


class InferenceNetwork(nn.Module):
    """The inference of a network on one image, without the resizing before and after it.

    Args:
        model: in evaluation mode; this module owns it.
        predict: function of the model and the image that returns what `forward` returns.
    """

    def __init__(self, model: nn.Module, predict):
        super().__init__()
        self.model = model
        self.predict = predict

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: float32 (3, H, W), 0 to 255, channels in the order of INPUT.FORMAT, already
                resized.

        Returns:
            the tensors that `output_names` lists. For detectors: D boxes (D, 4) as (x0, y0, x1, y1)
            in pixels of `image`, scores (D,), classes (D,) int64 and, with a mask head, mask
            probabilities (D, 28, 28) over the boxes; best score first. For segmentors: class scores
            (K, H, W).
        """
        with traceable():
            return self.predict(self.model, image)


def inference_network(model: nn.Module) -> InferenceNetwork:
    """Copy `model`, in evaluation mode and on the same device, as a function of one image.

    Args:
        model: a `GeneralizedRCNN` (Faster, Mask and Cascade R-CNN, R-FCN) with an RPN of its own, a
            `ClassAwareRPN` or a `SemanticSegmentor`. It is not changed.

    Raises:
        ValueError: another network, or one with an `inference` or `preprocess_image` of its own.
    """
    predict = _predict_of(model)
    _check_methods(model, predict)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    return InferenceNetwork(model, predict).eval()


def output_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the outputs of `inference_network(model)`: ("boxes", "scores", "classes"), followed
    by "masks" with a mask head; or ("class_scores",).

    Raises:
        ValueError: as of `inference_network`.
    """
    if _predict_of(model) is _segment:
        return ("class_scores",)
    masks = getattr(getattr(model, "roi_heads", None), "mask_on", False)
    return ("boxes", "scores", "classes") + ("masks",) * masks


def checked_network(model: nn.Module, image: Tensor) -> InferenceNetwork:
    """Return `inference_network(model)` after checking that it gives what `model` gives on `image`.

    Raises:
        ValueError: the image does not have the shape or type that `InferenceNetwork.forward` takes,
            or the network cannot be exported.
    """
    if image.dim() != 3 or image.dtype != torch.float32 or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype} of shape {tuple(image.shape)}; expected one image, float32 "
            "(3, H, W)"
        )
    network = inference_network(model)
    with torch.no_grad():
        found = differences(network.model, network(image), image)
    if not are_rounding(found):
        raise ValueError(
            f"{type(model).__name__}.forward gives other results than its parts in Detectron2's "
            f"order, which is what gets exported ({found}): move what it adds into the proposal "
            "generator or the heads"
        )
    return network


def _predict_of(model):
    if isinstance(model, SemanticSegmentor):
        return _segment
    if isinstance(model, ClassAwareRPN):
        return _detect_in_one_stage
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: give a GeneralizedRCNN, ClassAwareRPN or "
            "SemanticSegmentor, or a subclass of one"
        )
    if model.proposal_generator is None:
        raise ValueError(
            "this network takes its proposals from a file (MODEL.PROPOSAL_GENERATOR.NAME "
            "PrecomputedProposals), and an exported one is given an image only: train it with an "
            "RPN of its own"
        )
    if getattr(model.roi_heads, "keypoint_on", False):
        raise ValueError(
            "keypoints (MODEL.KEYPOINT_ON) cannot be exported, only boxes and masks can"
        )
    return _detect_in_two_stages


def _check_methods(model, predict) -> None:
    """Refuse a user's own methods that functions of this module would replace."""
    names = ["preprocess_image"] + ["inference"] * (predict is _detect_in_two_stages)
    for name in names:
        method = getattr(type(model), name, None)  # Detectron2 0.5's segmentor has none
        if method is not None and not method.__module__.startswith(OURS):
            raise ValueError(
                f"{type(model).__name__} has a {name} of its own, which would be left out: move "
                "what it does into the backbone, the proposal generator or the heads"
            )


def _detect_in_two_stages(model, image):
    images = _normalized(model, image)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    (found,), _ = model.roi_heads(images, features, proposals, None)
    return _outputs_of(found)


def _detect_in_one_stage(model, image):
    images = _normalized(model, image)
    (found,) = model.inference(*model.predict_anchors(images), images.image_sizes)
    return _outputs_of(found)


def _segment(model, image):
    height, width = image.shape[1:]
    features = model.backbone(_normalized(model, image).tensor)
    scores, _ = model.sem_seg_head(features, None)
    # A slice would make torch.export compare the sizes.
    rows, columns = (torch.arange(n, device=scores.device) for n in (height, width))
    return (scores[0].index_select(1, rows).index_select(2, columns),)


def _normalized(model, image) -> ImageList:
    """Normalise and pad as preprocess_image does, whose own padding cannot be traced."""
    height, width = image.shape[1:]
    image = (image.to(model.pixel_mean.device) - model.pixel_mean) / model.pixel_std
    step = model.backbone.size_divisibility
    if step > 1:
        # To torch.export, the sizes of all pyramid levels are then multiples of the quotient.
        padded = [(n + step - 1) // step * step for n in (height, width)]
        image = F.pad(image, [0, padded[1] - width, 0, padded[0] - height])
    return ImageList(image[None], [(height, width)])


def _outputs_of(found) -> tuple[Tensor, ...]:
    """The tensors of detections that `output_names` lists.

    As in Detectron2's `detector_postprocess`, boxes are first clipped to the image, and those that
    are then empty are dropped.
    """
    found.pred_boxes.clip(found.image_size)
    found = found[found.pred_boxes.nonempty()]
    masks = [found.pred_masks[:, 0]] if found.has("pred_masks") else []
    return found.pred_boxes.tensor, found.scores, found.pred_classes, *masks
