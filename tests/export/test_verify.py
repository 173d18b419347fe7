"""Differences of exported files are found; the order of detections is no difference."""

import pytest
import torch

from d2_deformable.export import inference_network
from d2_deformable.export.verify import are_rounding, differences
from export_networks import noise, small_network


@pytest.fixture(scope="module")
def case():
    model, image = small_network("mask_rcnn"), noise(64, 96)
    return model, image, inference_network(model)(image)


def changed(case, index, change):
    model, image, outputs = case
    outputs = [x.clone() for x in outputs]
    outputs[index] = change(outputs[index])
    return differences(model, outputs, image)


@pytest.mark.parametrize(
    ("index", "change", "name"),
    [
        (0, lambda boxes: boxes + torch.eye(len(boxes), 4) * 2e-3, "boxes"),
        (1, lambda scores: scores + torch.eye(len(scores))[2] * 2e-4, "scores"),
        (2, lambda classes: (classes + 1) % 3, "boxes"),
        (3, lambda masks: 1 - masks, "masks"),
    ],
)
def test_a_difference_is_found(case, index, change, name):
    found = changed(case, index, change)
    assert not are_rounding(found)
    assert not are_rounding({name: found[name]})


def test_rounding_is_no_difference(case):
    found = changed(case, 0, lambda boxes: boxes + 1e-5)
    assert are_rounding(found) and found["boxes"] > 0


@pytest.mark.parametrize("rows", [slice(1, None), [0, 0, *range(2, 30)]])
def test_one_less_and_one_twice(case, rows):
    model, image, outputs = case
    if isinstance(rows, list):
        rows = [0, 0, *range(2, len(outputs[0]))]
    assert not are_rounding(differences(model, [x[rows] for x in outputs], image))


def test_order_is_no_difference(case):
    model, image, outputs = case
    found = differences(model, [x.flip(0) for x in outputs], image)
    assert found["detections"] > 5 and found["boxes"] == found["scores"] == found["masks"] == 0


def test_class_scores():
    model, image = small_network("deeplab"), noise(64, 96)
    (scores,) = inference_network(model)(image)
    assert differences(model, [scores], image) == {"class_scores": 0}
    scores[0, 3, 4] += scores.abs().max() * 2e-4
    found = differences(model, [scores], image)
    assert not are_rounding(found) and found["class_scores"] == pytest.approx(2e-4, rel=0.05)
