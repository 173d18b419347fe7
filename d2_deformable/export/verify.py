"""Comparison of an exported file with its network."""

import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor, nn

# Differences that rounding may cause: in pixels for boxes, absolute for scores, as a share of the
# image's pixels for masks, and relative to the highest for class scores of a segmentor.
TOLERANCES = {"boxes": 1e-3, "scores": 1e-4, "masks": 1e-3, "class_scores": 1e-4}


def load_exported(path, kind: str):
    """Load an exported file as a function of one image, see `InferenceNetwork.forward`.

    Args:
        kind: "torchscript", "torch_export" or "onnx", which runs in ONNX Runtime on the CPU.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    if kind == "torchscript":
        return torch.jit.load(str(path))
    if kind == "torch_export":
        with open(path, "rb") as file:  # given a path, torch requires the suffix .pt2
            return torch.export.load(file).module()
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "an ONNX file is compared with its network in ONNX Runtime: pip install onnxruntime"
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image_input,) = session.get_inputs()

    def run(image):
        outputs = session.run(None, {image_input.name: image.cpu().numpy()})
        return tuple(torch.from_numpy(x) for x in outputs)

    return run


@torch.no_grad()
def differences(model: nn.Module, outputs, image: Tensor) -> dict[str, float]:
    """Compare the outputs of an exported network with those of `model` on the same image.

    Each detection is compared with the nearest one of the same class, because equal scores have no
    order.

    Args:
        model: the network, in evaluation mode.
        outputs, image: those of `InferenceNetwork.forward`.

    Returns:
        For detectors: "detections", the number that the network finds; the greatest difference of
        "boxes", in pixels, and of "scores"; with a mask head "masks", the greatest share of the
        image's pixels in which a mask differs. Detections without a counterpart give inf.
        For segmentors: the greatest difference of "class_scores", relative to the highest score.
    """
    assert not model.training, "differences is inference: call eval() first"
    height, width = image.shape[1:]
    (expected,) = model([{"image": image, "height": height, "width": width}])
    outputs = [x.cpu() for x in outputs]
    if "sem_seg" in expected:
        expected = expected["sem_seg"].cpu()
        return {"class_scores": _greatest((outputs[0] - expected) / expected.abs().max())}
    expected = expected["instances"].to("cpu")
    detections = len(expected)
    result = {"detections": detections, "boxes": torch.inf, "scores": torch.inf}
    boxes, scores, classes = outputs[:3]
    if len(boxes) != detections:
        return result
    box_gaps = (boxes[:, None] - expected.pred_boxes.tensor).abs().amax(2)
    score_gaps = (scores[:, None] - expected.scores).abs()
    gaps = box_gaps / TOLERANCES["boxes"] + score_gaps / TOLERANCES["scores"]
    gaps = gaps.masked_fill(classes[:, None] != expected.pred_classes, torch.inf)
    nearest = gaps.argmin(1) if detections else torch.zeros(0, dtype=torch.int64)
    rows = torch.arange(detections)
    if len(nearest.unique()) < detections or gaps[rows, nearest].isinf().any():
        return result
    result["boxes"] = _greatest(box_gaps[rows, nearest])
    result["scores"] = _greatest(score_gaps[rows, nearest])
    if expected.has("pred_masks"):
        masks = paste_masks_in_image(outputs[3], boxes, (height, width))
        share = (masks != expected.pred_masks[nearest]).float().flatten(1).mean(1)
        result["masks"] = _greatest(share)
    return result


def are_rounding(differences: dict[str, float]) -> bool:
    """Whether all differences are within TOLERANCES."""
    return all(
        differences[name] <= most for name, most in TOLERANCES.items() if name in differences
    )


def _greatest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0
