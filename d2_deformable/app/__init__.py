"""A web page on which one clicks through what a deformable network sees."""

from .. import needs_detectron2
from .explorer import Explorer
from .server import serve

__all__ = ["Explorer", "serve"]
