"""Analyses of a trained network: where it looks, pictures of it, and a report of its run."""

from .. import needs_detectron2
