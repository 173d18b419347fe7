"""FCOS (Tian et al. 2020) from a YAML. Detectron2's main branch has it for LazyConfig only."""

from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

from ..soft_nms import SoftNMS
from .dense import DenseSoftNMSMixin

try:
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
except ImportError:  # Detectron2 0.5
    FCOS = FCOSHead = None


def check_has_fcos() -> None:
    """Check that this Detectron2 has FCOS.

    Raises:
        ValueError: it does not.
    """
    if FCOS is None:
        raise ValueError(
            "MODEL.META_ARCHITECTURE build_fcos needs the FCOS of Detectron2's main branch, which "
            "version 0.5 lacks: run `pip uninstall detectron2`, then "
            "`D2_SOURCE=git d2-deformable install-detectron2`"
        )


@META_ARCH_REGISTRY.register()
def build_fcos(cfg):
    """Build Detectron2's FCOS from the keys of MODEL.RETINANET that both detectors have.

    These are IN_FEATURES, NUM_CLASSES, NUM_CONVS, NORM, PRIOR_PROB, FOCAL_LOSS_ALPHA,
    FOCAL_LOSS_GAMMA, SCORE_THRESH_TEST, TOPK_CANDIDATES_TEST and NMS_THRESH_TEST. FCOS has one
    anchor point per position, and its boxes always train on the GIoU loss.

    Raises:
        ValueError: this Detectron2 has no FCOS.
    """
    check_has_fcos()
    c = cfg.MODEL.RETINANET
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    shapes = [shapes[name] for name in c.IN_FEATURES]
    head = FCOSHead(
        input_shape=shapes,
        num_classes=c.NUM_CLASSES,
        conv_dims=[shapes[0].channels] * c.NUM_CONVS,
        norm=c.NORM,
        prior_prob=c.PRIOR_PROB,
    )
    return _SoftNMSFCOS(
        soft_nms=SoftNMS.from_config(cfg),
        backbone=backbone,
        head=head,
        head_in_features=c.IN_FEATURES,
        num_classes=c.NUM_CLASSES,
        focal_loss_alpha=c.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=c.FOCAL_LOSS_GAMMA,
        test_score_thresh=c.SCORE_THRESH_TEST,
        test_topk_candidates=c.TOPK_CANDIDATES_TEST,
        test_nms_thresh=c.NMS_THRESH_TEST,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


class _SoftNMSFCOS(DenseSoftNMSMixin, FCOS or object):  # type: ignore[misc]  # 0.5 lacks it
    """FCOS with TEST.SOFT_NMS."""
