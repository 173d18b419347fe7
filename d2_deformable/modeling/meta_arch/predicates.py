"""Predicates for the network that MODEL.META_ARCHITECTURE names; subclasses count too."""

from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
    SemanticSegmentor,
)

from ..roi_heads import SoftNMSMixin
from ..roi_heads.predict_boxes import find_predict_boxes
from ..soft_nms import SoftNMS
from .class_aware_rpn import ClassAwareRPN
from .dense import DenseSoftNMSMixin
from .fcos import FCOS
from .mimic import MimicRCNN


def _is_subclass(cfg, classes) -> bool:
    name = cfg.MODEL.META_ARCHITECTURE
    # An unknown name is left to Detectron2's own error.
    known = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(known, type) and issubclass(known, classes)


def is_detector(cfg) -> bool:
    """Whether the network reads MODEL.ROI_HEADS.NUM_CLASSES, unlike e.g. a ProposalNetwork."""
    return _is_subclass(cfg, (GeneralizedRCNN, ClassAwareRPN))


def is_fcos(cfg) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "build_fcos"


def is_missing(cfg) -> bool:
    """Whether the network cannot be built because this Detectron2 lacks it."""
    return is_fcos(cfg) and FCOS is None


def is_dense_detector(cfg) -> bool:
    """Whether the network reads MODEL.RETINANET.NUM_CLASSES."""
    return is_fcos(cfg) or _is_subclass(cfg, RetinaNet) and not is_class_aware_rpn(cfg)


def is_class_aware_rpn(cfg) -> bool:
    return _is_subclass(cfg, ClassAwareRPN)


def mimics(cfg) -> bool:
    """Whether the network reads MODEL.MIMIC."""
    return _is_subclass(cfg, MimicRCNN)


def is_segmentor(cfg) -> bool:
    return _is_subclass(cfg, SemanticSegmentor)


def cfg_supports_predict_raw(cfg) -> bool:
    """Whether `modeling.tta.supports_predict_raw` will hold for the network, before it is built."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in META_ARCH_REGISTRY and hasattr(META_ARCH_REGISTRY.get(name), "predict_raw"):
        return True
    heads = _heads(cfg)
    return heads is not None and find_predict_boxes(heads) is not None


def _heads(cfg) -> type | None:
    """The class of RoI heads of a GeneralizedRCNN; None for other networks and unknown heads."""
    name = cfg.MODEL.ROI_HEADS.NAME
    kind = ROI_HEADS_REGISTRY.get(name) if name in ROI_HEADS_REGISTRY else None
    return kind if isinstance(kind, type) and _is_subclass(cfg, GeneralizedRCNN) else None


def check_soft_nms(cfg) -> None:
    """Check TEST.SOFT_NMS, which networks of Detectron2 would ignore.

    Raises:
        ValueError: a value is invalid, or the network does not read these keys.
    """
    reads = is_class_aware_rpn(cfg) or is_fcos(cfg) or _is_subclass(cfg, DenseSoftNMSMixin)
    if SoftNMS.from_config(cfg) is None or reads:
        return
    heads = _heads(cfg)
    if heads is None:
        raise ValueError(
            f"TEST.SOFT_NMS does not support MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE};"
            " set TEST.SOFT_NMS.ENABLED False, or choose SoftNMSRetinaNet instead of RetinaNet, "
            "GeneralizedRCNN, ClassAwareRPN or build_fcos"
        )
    if not issubclass(heads, SoftNMSMixin):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} does not read TEST.SOFT_NMS; choose "
            "DeformROIHeads instead of StandardROIHeads, or DeformCascadeROIHeads instead of "
            "CascadeROIHeads: they compute the same from the same checkpoint"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.MASK_ON:
        raise ValueError(
            "TEST.SOFT_NMS and TEST.AUG are enabled, but several scales of a network with masks "
            "are merged by ordinary NMS: set one of them False, or MODEL.MASK_ON False"
        )
