"""A Sphinx extension: docstrings of this package in the form that Sphinx's napoleon reads."""

import re

ATTRIBUTE = re.compile(r"[a-z]\w*(, [a-z]\w*)*: ")


def list_attributes(app, what, name, obj, options, lines: list[str]) -> None:
    """Put "Attributes:" above a paragraph of a class in which every item is "name: meaning"."""
    if what != "class":
        return
    text = "\n".join(lines)
    paragraphs = text.split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        items = [line for line in paragraph.strip("\n").split("\n") if not line.startswith(" ")]
        if items and all(map(ATTRIBUTE.match, items)):
            indented = paragraph.strip("\n").replace("\n", "\n    ")
            paragraphs[index] = f"Attributes:\n    {indented}"
    lines[:] = "\n\n".join(paragraphs).split("\n")


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", list_attributes, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
