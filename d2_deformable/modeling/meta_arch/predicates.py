"""What kind of network MODEL.META_ARCHITECTURE names, a user's own subclass too."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor

from .class_aware_rpn import ClassAwareRPN


def _is_subclass(cfg, classes) -> bool:
    name = cfg.MODEL.META_ARCHITECTURE
    # An unknown name is left to Detectron2's own error.
    known = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(known, type) and issubclass(known, classes)


def is_detector(cfg) -> bool:
    """Whether it reads MODEL.ROI_HEADS.NUM_CLASSES, which a ProposalNetwork, say, does not."""
    return _is_subclass(cfg, (GeneralizedRCNN, ClassAwareRPN))


def is_class_aware_rpn(cfg) -> bool:
    return _is_subclass(cfg, ClassAwareRPN)


def is_segmentor(cfg) -> bool:
    return _is_subclass(cfg, SemanticSegmentor)


def has_predict_raw(cfg) -> bool:
    """Whether it can be tested at several scales and with box average by `DetectorWithTTA`."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and hasattr(META_ARCH_REGISTRY.get(name), "predict_raw")
