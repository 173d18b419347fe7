"""Command-line helpers shared by the commands of tools/."""

from .. import needs_detectron2
