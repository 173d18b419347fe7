"""Deformable layers in models of other libraries; these modules need torch, not Detectron2."""
