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

    In a crowd, labels that would cover that of a higher score are left out.

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
    for box, index in reversed(list(zip(prediction.boxes, prediction.classes))):  # best on top
        draw.rectangle(box, outline=class_color(index), width=line)
    taken: list[tuple] = []
    found = zip(prediction.boxes, prediction.scores, prediction.classes, prediction.names)
    for box, score, index, name in found:  # the best has the first choice of places
        text = f"{name} {score:.0%}"
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        if place := _place_label(box, (width + 4, height + 3), picture.size, taken):
            taken.append(place)
            draw.rectangle(place, fill=class_color(index))
            draw.text((place[0] + 2, place[1]), text, fill="white", font=font)
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


def _place_label(box, size, image_size, taken) -> tuple | None:
    """Find room for a label above its box, below it, or inside it at the top or bottom.

    Args:
        box: (x0, y0, x1, y1).
        size, image_size: (width, height) of the label and of the image.
        taken: places (x0, y0, x1, y1) of other labels.

    Returns:
        (x0, y0, x1, y1), or None if another label is in the way everywhere.
    """
    (width, height), (_, y0, _, y1) = size, box
    x = max(0, min(box[0], image_size[0] - width))
    for y in (y0 - height, y1, y0, y1 - height):
        place = (x, y, x + width, y + height)
        inside = 0 <= y <= image_size[1] - height
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a, b) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _blend(pixels, color) -> np.ndarray:
    return ((1 - OPACITY) * pixels + OPACITY * np.asarray(color)).astype(np.uint8)
