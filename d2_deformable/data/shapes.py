"""Draws one picture of `warped_shapes`: shapes under rotation, scale, aspect and smooth warps.

The pictures are identical on every machine. Randomness is limited to PCG64's uniform floats and
integers. Arrays only go through operations that IEEE 754 rounds in one way (+ - * /, sqrt, floor,
comparisons), never a sum, a matrix multiply or a sine, whose last bit depends on the processor.
Scalars from the math library are rounded to six digits.
"""

import math
from dataclasses import dataclass

import numpy as np

# Distance-like functions of (u, v), positive inside, zero on the outline, |u| and |v| <= about 1.
SHAPES = {
    "disc": lambda u, v: 0.85 - _length(u, v),
    "square": lambda u, v: 0.75 - np.maximum(abs(u), abs(v)),
    "triangle": lambda u, v: _polygon(u, v, 3, 0.5),
    "star": lambda u, v: _star(u, v),
    "cross": lambda u, v: np.maximum(
        np.minimum(0.95 - abs(u), 0.3 - abs(v)), np.minimum(0.3 - abs(u), 0.95 - abs(v))
    ),
    "ring": lambda u, v: 0.24 - abs(_length(u, v) - 0.7),
    "crescent": lambda u, v: np.minimum(0.95 - _length(u + 0.2, v), _length(u - 0.35, v) - 0.75),
    "heart": lambda u, v: np.maximum(
        0.5 - np.maximum(abs(u + 0.25), abs(v + 0.25)),
        0.47 - np.minimum(_length(u - 0.32, v + 0.3), _length(u + 0.3, v - 0.32)),
    ),
}
NAMES = tuple(SHAPES)
MAX_OBJECTS = 4
OVERLAP = 0.15  # largest share of a new shape that lies on others, and of each that it hides


@dataclass(frozen=True)
class Variation:
    """Ranges in which the shapes of a picture differ.

    sizes: longest side of the unwarped shape over that of the image, on a logarithmic scale.
    aspects: shortest over longest side, along an axis of any direction.
    warps: largest displacement of the warp's control points over the shape's radius.
    turned: whether shapes are rotated.
    """

    sizes: tuple[float, float] = (0.2, 0.7)
    aspects: tuple[float, float] = (0.55, 1.0)
    warps: tuple[float, float] = (0.3, 1.1)
    turned: bool = True


# The size of rigid shapes is the geometric mean of the wide range.
VARIATIONS = {
    "warped": Variation(),
    "wide": Variation(sizes=(0.07, 0.7)),
    "rigid": Variation(sizes=(0.22, 0.22), aspects=(1.0, 1.0), warps=(0.0, 0.0), turned=False),
}


def draw(
    rng: np.random.Generator, size: int, variation: Variation = VARIATIONS["warped"]
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one picture; return it with the visible part of each of its 1 to 4 shapes.

    With the same `rng`, the background is the same in every variation.

    Returns:
        image (size, size, 3) uint8 RGB; [(index into NAMES, mask (size, size) bool), ...].
    """
    image, colors = _background(rng, size)
    owner = np.zeros((size, size), np.int8)  # which shape a pixel shows: 1, 2, ...; 0 is none
    labels = []
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    low, high = variation.sizes
    # Large shapes are placed first, since small ones fit into the remaining room.
    scales = [low * _rounded((high / low) ** rng.random()) for _ in range(count)]
    for scale in sorted(scales, reverse=True):
        label = int(rng.integers(len(NAMES)))
        patch = _shape(rng, label, scale * size, variation)
        place = _place(rng, patch[0] > 0, owner)
        if place is not None:
            labels.append(label)
            _paint(rng, image, place, patch, colors)
            owner[place][patch[0] > 0] = len(labels)
    image += (rng.random((size, size), np.float32) - 0.5) * _between(rng, 4, 24)  # grain
    image = np.rint(np.clip(image, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return image, [(label, owner == k) for k, label in enumerate(labels, 1)]


def _shape(rng, label: int, side: float, variation: Variation):
    """Make (f, u, v), each (h, w), cropped to the shape: its function and warped coordinates."""
    side = max(side, 8.0)
    half = math.ceil(0.85 * side)
    offset = np.arange(-half, half + 1, dtype=np.float32)
    x, y = _turn(rng, offset[None, :], offset[:, None], variation.turned)
    aspect = _between(rng, *variation.aspects)
    u, v = _turn(rng, x / (side / 2), y / (side / 2 * aspect), variation.turned)
    warp = _noise(rng, len(offset), 3, channels=2) * _between(rng, *variation.warps)
    u, v = u + warp[0], v + warp[1]
    f = SHAPES[NAMES[label]](u, v)
    rows, columns = np.flatnonzero((f > 0).any(1)), np.flatnonzero((f > 0).any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return f[box], u[box], v[box]


def _place(rng, mask: np.ndarray, owner: np.ndarray):
    """Slices of the picture where `mask` overlaps little with others; None if there is no room."""
    (height, width), size = mask.shape, len(owner)
    if max(height, width) > size:
        return None
    areas = np.bincount(owner.ravel(), minlength=MAX_OBJECTS + 1)
    for _ in range(12):
        y, x = (int(rng.integers(size - side + 1)) for side in (height, width))
        place = slice(y, y + height), slice(x, x + width)
        hidden = np.bincount(owner[place][mask], minlength=len(areas))[1:]
        if hidden.sum() <= OVERLAP * mask.sum() and (hidden <= OVERLAP * areas[1:]).all():
            return place
    return None


def _paint(rng, image: np.ndarray, place, patch, colors) -> None:
    """Draw the shape onto `image` (3, S, S), in a colour distinct from the background's."""
    f, u, v = patch
    radius = 0.5 * max(f.shape)
    color = _distinct_color(rng, colors)
    other = np.clip(color + _sign(rng) * _between(rng, 30, 90), 0, 255)
    fill = _texture(rng, u, v, color, other)
    # A rim, darker or lighter, and light from one side give the shape some body.
    rim = np.clip(1 - f * _between(rng, 4, 12), 0, 1) * _between(rng, -0.45, 0.3)
    side, _ = _turn(rng, u, v)
    fill *= 1 + rim + 0.15 * np.clip(side, -1, 1)
    target = image[:, *place]
    target += (fill - target) * (np.clip(f * radius + 0.3, 0, 1) * (f > 0))


def _background(rng, size: int):
    """Draw a background (3, size, size) float32; return it with its two colours (3, 1, 1)."""
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    bend = _noise(rng, size, 3, channels=2) * _between(rng, 0, 0.8)
    u, v = _turn(rng, pixel[None, :] + bend[0], pixel[:, None] + bend[1])
    zoom = _between(rng, 1, 3)
    first = _color(rng)
    second = np.clip(first + _sign(rng) * _between(rng, 20, 110, (3, 1, 1)), 0, 255)
    image = _texture(rng, u * zoom, v * zoom, first, second)
    image += _noise(rng, size, int(rng.integers(3, 12)), channels=3) * _between(rng, 10, 80)
    for _ in range(int(rng.integers(2, 9))):  # strokes that belong to no class
        along, across = _turn(rng, u, v)
        offset, length = (along - _between(rng, -1, 1)), _between(rng, 0.1, 0.7)
        distance = abs(across - _between(rng, -1, 1) + _between(rng, -1.5, 1.5) * offset * offset)
        width = _between(rng, 0.005, 0.04)
        alpha = np.clip((np.minimum(width - distance, length - abs(offset))) * size / 2, 0, 1)
        image += (_color(rng) - image) * (alpha * _between(rng, 0.4, 1))
    return image, (first, second)


def _texture(rng, u, v, color, other) -> np.ndarray:
    """Mix `color` and `other` by a random pattern in the coordinates (u, v), to (3, h, w)."""
    u, v = _turn(rng, u * _between(rng, 1, 5), v * _between(rng, 1, 5))
    u, v = u + _between(rng, 0, 1), v + _between(rng, 0, 1)
    waves = [abs(w - 2 * np.floor(w / 2) - 1) for w in (u, v)]  # triangle waves in [0, 1]
    pattern = [
        lambda: 0.5 * waves[0],
        lambda: np.clip(8 * (waves[0] - 0.5) + 0.5, 0, 1),  # stripes
        lambda: np.clip(0.5 + 30 * (waves[0] - 0.5) * (waves[1] - 0.5), 0, 1),  # checks
        lambda: np.clip(8 * (0.55 - _length(*waves)) + 0.5, 0, 1),  # dots
        lambda: waves[0] * waves[1],  # soft bumps
    ][int(rng.integers(5))]()
    return color + (other - color) * pattern


def _noise(rng, size: int, cells: int, channels: int) -> np.ndarray:
    """Smooth noise (channels, size, size) float32 in (-1, 1): a uniform cubic B-spline surface.

    Args:
        cells: spans between control points along each side.
    """
    grid = rng.random((channels, cells + 3, cells + 3), np.float32) * 2 - 1
    t = (np.arange(size, dtype=np.float32) + 0.5) * (cells / size)
    first = np.floor(t).astype(np.intp)
    t = t - first.astype(np.float32)
    s = 1 - t
    weights = np.stack(
        [s * s * s, 4 + t * t * (3 * t - 6), 4 + s * s * (3 * s - 6), t * t * t]
    ) * np.float32(1 / 6)
    columns = [np.take(grid, first + k, 2) * w for k, w in enumerate(weights)]
    grid = columns[0] + columns[1] + columns[2] + columns[3]
    rows = [np.take(grid, first + k, 1) * w[:, None] for k, w in enumerate(weights)]
    return rows[0] + rows[1] + rows[2] + rows[3]


def _turn(rng, x, y, turned: bool = True):
    """Rotate (x, y) by a uniformly random angle or, if not `turned`, not at all."""
    angle = 2 * math.pi * rng.random() * turned
    cos, sin = _rounded(math.cos(angle)), _rounded(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _length(u, v):
    return np.sqrt(u * u + v * v)


def _polygon(u, v, sides: int, radius: float):
    """A regular polygon of this inner radius: the nearest of its edges' distances."""
    edges = _edges(u, v, sides, radius)
    nearest = edges[0]
    for edge in edges[1:]:
        nearest = np.minimum(nearest, edge)
    return nearest


def _star(u, v):
    """A pentagram: the points inside at least four of its five lines."""
    nearest, second = np.inf, np.inf
    for edge in _edges(u, v, 5, 0.36):
        second = np.minimum(second, np.maximum(nearest, edge))
        nearest = np.minimum(nearest, edge)
    return second


def _edges(u, v, sides: int, radius: float):
    angles = [2 * math.pi * k / sides for k in range(sides)]
    return [radius - _rounded(math.cos(a)) * u - _rounded(math.sin(a)) * v for a in angles]


def _distinct_color(rng, colors) -> np.ndarray:
    """The first of 20 random colours that differs by 80 in some channel from all `colors`."""
    for _ in range(20):
        color = _color(rng)
        if all(abs(color - c).max() > 80 for c in colors):
            break
    return color


def _color(rng) -> np.ndarray:
    """(3, 1, 1) float32 RGB."""
    return _between(rng, 10, 245, (3, 1, 1))


def _between(rng, low: float, high: float, shape=None):
    """Draw a float, or a float32 array of this shape, uniformly from [low, high).

    `rng.uniform` is avoided: some compilers fuse its C code into a multiply-add, which rounds
    differently.
    """
    value = rng.random(shape, np.float32)
    return low + (high - low) * (float(value) if shape is None else value)


def _sign(rng) -> int:
    return 1 if rng.random() < 0.5 else -1


def _rounded(value: float) -> float:
    return round(value, 6)
