"""Soft-NMS in Detectron2's dense detectors, RetinaNet and FCOS."""

import sys

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Instances

from ..soft_nms import SoftNMS


class DenseSoftNMSMixin:
    """Gives a dense detector of Detectron2 the argument `soft_nms`.

    List it before the class, which selects by ordinary NMS in `inference_single_image`, with the
    attributes `test_nms_thresh` and `max_detections_per_image`.
    """

    test_nms_thresh: float
    max_detections_per_image: int

    def __init__(self, *, soft_nms: SoftNMS | None = None, **kwargs):
        super().__init__(**kwargs)
        self.soft_nms = soft_nms
        if soft_nms:
            self._selection = self.test_nms_thresh, self.max_detections_per_image
            # No box overlaps another by more, so ordinary NMS keeps all.
            self.test_nms_thresh, self.max_detections_per_image = 1.0, sys.maxsize

    def inference_single_image(self, *args) -> Instances:
        """As Detectron2's, with soft-NMS."""
        found = super().inference_single_image(*args)  # type: ignore[misc]
        return self.soft_nms.among(found, *self._selection) if self.soft_nms else found


@META_ARCH_REGISTRY.register()
class SoftNMSRetinaNet(DenseSoftNMSMixin, RetinaNet):
    """Detectron2's RetinaNet with TEST.SOFT_NMS. Weights and training are the same.

    Args:
        soft_nms: None selects by ordinary NMS.
        kwargs: arguments of `RetinaNet`.
    """

    @configurable
    def __init__(self, *, soft_nms: SoftNMS | None = None, **kwargs):
        super().__init__(soft_nms=soft_nms, **kwargs)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "soft_nms": SoftNMS.from_config(cfg)}
