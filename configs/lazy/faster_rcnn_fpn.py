"""Faster R-CNN with FPN: `mask_rcnn_fpn.py` without masks."""

from .mask_rcnn_fpn import dconv_stages, model

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(key)
