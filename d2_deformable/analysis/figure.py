"""Figures that show names as they are."""

from matplotlib import figure
from matplotlib.text import Text


class Figure(figure.Figure):
    """matplotlib's Figure, but text between two "$", as in the name of a class, is no formula."""

    def draw(self, renderer):
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)
