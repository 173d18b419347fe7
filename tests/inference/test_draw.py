import numpy as np

from d2_deformable.analysis.draw import class_color
from d2_deformable.inference import Prediction, draw_prediction
from d2_deformable.inference.draw import _overlap, _place_label

IMAGE = (200, 100)
BOX, LABEL = (50, 40, 90, 60), (60, 12)


def test_a_label_takes_the_first_free_place():
    above, below = (50, 28, 110, 40), (50, 60, 110, 72)
    at_the_top, at_the_bottom = (50, 40, 110, 52), (50, 48, 110, 60)
    assert _place_label(BOX, LABEL, IMAGE, []) == above
    assert _place_label(BOX, LABEL, IMAGE, [(60, 20, 80, 30)]) == below
    assert _place_label(BOX, LABEL, IMAGE, [above[:3] + (39,), (60, 65, 80, 70)]) == at_the_top
    assert _place_label(BOX, LABEL, IMAGE, [(60, 20, 80, 42), (60, 65, 80, 70)]) == at_the_bottom
    assert _place_label(BOX, LABEL, IMAGE, [(0, 0, 200, 100)]) is None


def test_a_label_stays_in_the_image():
    assert _place_label((180, 2, 199, 30), LABEL, IMAGE, []) == (140, 30, 200, 42)
    assert _place_label((0, 2, 199, 99), LABEL, IMAGE, []) == (0, 2, 60, 14)


def test_labels_of_a_crowd_are_disjoint():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [160, 80], (40, 2))
    taken = []
    for x, y in corners:
        place = _place_label((x, y, x + 30, y + 15), LABEL, IMAGE, taken)
        taken += [place] if place else []
    assert len(taken) >= 8
    pairs = [(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert not any(_overlap(a, b) for a, b in pairs)


def test_the_best_box_lies_on_top():
    box = [10.0, 40.0, 90.0, 90.0]
    found = Prediction("", 100, 100, [box, box], [0.9, 0.2], [0, 1], ["a", "b"])
    image = draw_prediction(np.zeros((100, 100, 3), np.uint8), found, ["a", "b"])
    best = tuple(int(class_color(0)[i : i + 2], 16) for i in (1, 3, 5))
    assert tuple(image[65, 10]) == best
