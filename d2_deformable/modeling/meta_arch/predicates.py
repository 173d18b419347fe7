"""Predicates for the network that MODEL.META_ARCHITECTURE names; subclasses count too."""

from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
    SemanticSegmentor,
)

from ..roi_heads.predict_boxes import find_predict_boxes
from .class_aware_rpn import ClassAwareRPN
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
    name, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    if name in META_ARCH_REGISTRY and hasattr(META_ARCH_REGISTRY.get(name), "predict_raw"):
        return True
    kind = ROI_HEADS_REGISTRY.get(heads) if heads in ROI_HEADS_REGISTRY else None
    known = isinstance(kind, type) and find_predict_boxes(kind) is not None
    return known and _is_subclass(cfg, GeneralizedRCNN)
