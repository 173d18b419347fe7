"""Draw predictions on their image, at its own size."""

import numpy as np
import pycocotools.mask as coco_masks
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..analysis.draw import class_color
from ..analysis.segmentation import class_colors
from .predictor import Prediction

OPACITY = 0.5  # of masks


def draw_prediction(image: np.ndarray, prediction: Prediction, class_names) -> np.ndarray:
    """Draw boxes with class and score and the masks, or the classes of all pixels.

    Args:
        image: RGB (H, W, 3) uint8.
        class_names: name of each class index.

    Returns:
        RGB (H, W, 3) uint8.
    """
    if prediction.labels is not None:
        colors = class_colors(len(class_names))
        return _blend(image, colors[prediction.labels])
    image = image.copy()
    for code, index in zip(prediction.masks, prediction.classes):
        mask = coco_masks.decode(code).astype(bool)
        image[mask] = _blend(image[mask], ImageColor.getrgb(class_color(index)))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    line, font = max(1, side // 200), ImageFont.load_default(max(10, side // 28))
    found = zip(prediction.boxes, prediction.scores, prediction.classes, prediction.names)
    for box, score, index, name in reversed(list(found)):  # the best on top
        draw.rectangle(box, outline=class_color(index), width=line)
        _draw_label(draw, picture.size, box, f"{name} {score:.0%}", class_color(index), font)
    return np.asarray(picture)


def index_image(labels: np.ndarray, classes: int) -> Image.Image:
    """Make an image whose pixel values are the class indices, with a colour for each.

    With more than 256 classes it has 16 bits and no colours.
    """
    if classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8)).convert("P")
    image.putpalette(class_colors(classes).astype(np.uint8).tobytes())
    return image


def _draw_label(draw, size, box, text, color, font) -> None:
    """Write text above the upper left corner of a box, or wherever the image has room for it."""
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    width, height = width + 4, height + 3
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else max(0, box[1])
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 2, y), text, fill="white", font=font)


def _blend(pixels, color) -> np.ndarray:
    return ((1 - OPACITY) * pixels + OPACITY * np.asarray(color)).astype(np.uint8)
