"""A copy of the network as a function of one image: what eager gives, and nothing changed."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from d2_deformable.export import inference_network, output_names
from d2_deformable.export.traceable import traceable
from d2_deformable.export.verify import differences
from export_networks import NETWORKS, noise, small_config, small_network


@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_what_the_network_gives(name):
    model = small_network(name)
    network = inference_network(model)
    for size in ((96, 128), (77, 150)):
        image = noise(*size)
        outputs = network(image)
        assert len(outputs) == len(output_names(model))
        found = differences(model, outputs, image)
        assert found.pop("detections", 1) > 0
        assert not any(found.values())


def test_outputs_have_the_shapes_of_their_names():
    image = noise(64, 96)
    model = small_network("mask_rcnn")
    boxes, scores, classes, masks = inference_network(model)(image)
    assert output_names(model) == ("boxes", "scores", "classes", "masks")
    n = len(boxes)
    assert boxes.shape == (n, 4) and scores.shape == classes.shape == (n,) and n > 1
    assert classes.dtype == torch.int64 and masks.shape == (n, 28, 28)
    assert (scores[:-1] >= scores[1:]).all()
    model = small_network("deeplab")
    (scores,) = inference_network(model)(image)
    assert output_names(model) == ("class_scores",)
    assert scores.shape[1:] == (64, 96)


def test_the_network_itself_stays_as_it_is():
    model = small_network("rfcn").train()
    model.backbone.eval()  # as of a frozen part
    before = {name: (m, m.training) for name, m in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [p.requires_grad for p in model.parameters()]
    network = inference_network(model)
    network(noise(64, 64))
    assert {name: (m, m.training) for name, m in model.named_modules()} == before
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_detectron2_is_put_back_also_after_an_error():
    clip = Boxes.clip
    with pytest.raises(ZeroDivisionError), traceable():
        assert Boxes.clip is not clip
        raise ZeroDivisionError
    assert Boxes.clip is clip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "ProposalNetwork cannot be exported"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "RPN of its own"),
        (["MODEL.KEYPOINT_ON", True], "keypoints"),
    ],
)
def test_what_cannot_be_exported_is_told(overrides, message):
    model = build_model(small_config("mask_rcnn", *overrides))
    for function in (inference_network, output_names):
        with pytest.raises(ValueError, match=message):
            function(model)
