"""Trained networks as files that run without Detectron2's Python code."""

from .. import needs_detectron2
from .network import inference_network, output_names
from .onnx import export_onnx
from .program import export_program
from .torchscript import export_torchscript

__all__ = [
    "export_onnx",
    "export_program",
    "export_torchscript",
    "inference_network",
    "output_names",
]
