"""Whole networks by MODEL.META_ARCHITECTURE."""

from .rcnn import DeformRCNN

__all__ = ["DeformRCNN"]
