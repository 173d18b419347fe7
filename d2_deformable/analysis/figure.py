"""Figures that show names as they are."""

from matplotlib import figure
from matplotlib.text import Text

THINNEST = 20  # the longer over the shorter side of an image as it is drawn


def drawn_aspect(image) -> float:
    """Height over width of an image (H, W, ...) as a figure shows it, at most 20 or 1/20.

    At full width, an image of 4 x 3000 pixels would make a picture of a million pixels in height.
    """
    height, width = image.shape[:2]
    return min(max(height / width, 1 / THINNEST), THINNEST)


class Figure(figure.Figure):
    """matplotlib's Figure for text of any kind, such as names of classes.

    Text between two "$" is no formula, and bytes that are not UTF-8 are shown as "?".
    """

    def draw(self, renderer):
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_text(text.get_text().encode(errors="replace").decode())
        super().draw(renderer)
