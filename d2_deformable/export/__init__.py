"""Trained networks as files that run without Detectron2's Python code."""
