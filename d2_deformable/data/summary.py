"""The results of `inspect_datasets` as text."""

from collections.abc import Iterator

import numpy as np

from ..utils.text import count
from .inspection import ERRORS, WARNINGS, Inspected
from .statistics import SIZE_EDGES, Anchors

BAR = 30  # characters of the longest bar of a histogram


def summarize(data: Inspected, anchors: Anchors | None = None, limit: int | None = 5) -> str:
    """Describe a data set: counts, histograms, and problems by kind.

    Args:
        anchors: those of `data.overlaps`.
        limit: files to name of each kind of problem; None: all.
    """
    lines = [_counts(data), *_classes(data)]
    if len(data.objects.boxes):
        lines += _sizes(data, anchors)
    return "\n".join([*lines, *_problems(data, limit), ""])


def _counts(data: Inspected) -> str:
    if data.has_masks:
        return f"{data.name}: {count(len(data.dicts), 'image with class masks')}"
    per_image = data.counts.sum() / max(1, len(data.dicts))
    return (
        f"{data.name}: {count(len(data.dicts), 'image')}, {count(data.counts.sum(), 'object')} "
        f"({per_image:.1f} per image)"
    )


def _classes(data: Inspected) -> Iterator[str]:
    width = max([5, *map(len, data.classes)])
    unit = "pixels" if data.has_masks else "objects"
    yield f"  {'class':{width}} {unit:>11} {'share':>7} {'images':>8}"
    total, most = max(1, data.counts.sum()), max([1, *data.counts])
    for name, objects, images in zip(data.classes, data.counts, data.images):
        bar = "#" * round(BAR * objects / most)
        yield f"  {name:{width}} {objects:11d} {objects / total:7.1%} {images:8d}  {bar}".rstrip()


def _sizes(data: Inspected, anchors: Anchors | None) -> Iterator[str]:
    reached = None
    if anchors:
        reached = data.overlaps >= anchors.threshold
        yield (
            f"  size of objects in the network's input, and share that an anchor overlaps by IoU "
            f">= {anchors.threshold:g}"
        )
    else:
        yield "  size of objects"
    yield f"  {'side (px)':>9} {'objects':>8} {'share':>7}" + (
        f" {'reached':>8}" if anchors else ""
    )
    sides = data.objects.sides
    inside = [(sides >= low) & (sides < high) for low, high in zip(SIZE_EDGES, SIZE_EDGES[1:])]
    most = max(mask.sum() for mask in inside)
    for low, high, mask in zip(SIZE_EDGES, SIZE_EDGES[1:], inside):
        label = f"{low}+" if np.isinf(high) else f"{low}-{high}"
        line = f"  {label:>9} {mask.sum():8d} {mask.mean():7.1%}"
        if anchors:
            line += f" {reached[mask].mean():8.1%}" if mask.any() else f" {'-':>8}"
        yield f"{line}  {'#' * round(BAR * mask.sum() / most)}".rstrip()
    if anchors:
        yield f"  {'all':>9} {len(sides):8d} {1:7.1%} {reached.mean():8.1%}"


def _problems(data: Inspected, limit: int | None) -> Iterator[str]:
    for title, kinds in (("ERROR", ERRORS), ("warning", WARNINGS)):
        for kind, meaning in kinds.items():
            if not (found := data.problems.get(kind)):
                continue
            yield f"  {title}: {count(len(found), meaning)}"
            distinct = list(dict.fromkeys(found))
            yield from (f"    {line}" for line in distinct[:limit])
            if limit is not None and len(distinct) > limit:
                yield f"    and {len(distinct) - limit} more (--all lists them)"
