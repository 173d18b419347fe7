"""Detect objects in images and videos with a trained network.

from d2_deformable import predict

for prediction in predict("photos/"):
    print(prediction.file, prediction.names, prediction.boxes)
"""

from .. import needs_detectron2
from .draw import draw_prediction
from .predictor import DEFAULT_MODEL, Prediction, Predictor, predict
from .sources import find_inputs

__all__ = ["DEFAULT_MODEL", "Prediction", "Predictor", "draw_prediction", "find_inputs", "predict"]
