"""Importing this package registers its backbones and heads with Detectron2."""

from . import backbone, roi_heads  # noqa: F401  only registration

__all__ = ["backbone", "roi_heads"]
