"""A copy of the network as a function of one image gives the eager results and changes nothing."""

import threading

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from d2_deformable.export import export_torchscript, inference_network, output_names
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
    model.backbone.eval()  # like a frozen part
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


def test_detectron2_is_restored_even_after_an_error():
    clip = Boxes.clip
    with pytest.raises(ZeroDivisionError), traceable():
        assert Boxes.clip is not clip
        raise ZeroDivisionError
    assert Boxes.clip is clip


def test_detectron2_is_restored_even_after_threads():
    clip, network, image = Boxes.clip, inference_network(small_network("rfcn")), noise(64, 64)
    threads = [
        threading.Thread(target=lambda: [network(image) for _ in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Boxes.clip is clip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "ProposalNetwork cannot be exported"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "RPN of its own"),
        (["MODEL.KEYPOINT_ON", True], "keypoints"),
    ],
)
def test_what_cannot_be_exported_is_reported(overrides, message):
    model = build_model(small_config("mask_rcnn", *overrides))
    for function in (inference_network, output_names):
        with pytest.raises(ValueError, match=message):
            function(model)


def with_methods(name, **methods):
    """A small network of a subclass. Each method gets the result of the parent's method."""
    model = small_network(name)
    parent = type(model)

    def overriding(method, change):
        return lambda self, *args, **kwargs: change(getattr(parent, method)(self, *args, **kwargs))

    methods = {method: overriding(method, change) for method, change in methods.items()}
    model.__class__ = type("Own", (parent,), {"__module__": __name__, **methods})
    return model


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("rfcn", "inference"),
        ("rfcn", "preprocess_image"),
        ("class_aware_rpn", "preprocess_image"),
        ("deeplab", "preprocess_image"),
    ],
)
def test_own_methods_that_would_be_left_out_are_refused(name, method):
    with pytest.raises(ValueError, match=f"Own has a {method} of its own"):
        inference_network(with_methods(name, **{method: lambda result: result}))


def fewer(results):
    return [{"instances": result["instances"][:2]} for result in results]


@pytest.mark.parametrize("name", ["rfcn", "class_aware_rpn"])
def test_an_own_forward_is_exported_where_it_gives_the_same(name, tmp_path):
    export_torchscript(with_methods(name, forward=lambda x: x), noise(64, 96), tmp_path / "file")
    with pytest.raises(ValueError, match="Own.forward gives other results"):
        export_torchscript(with_methods(name, forward=fewer), noise(64, 96), tmp_path / "other")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_own_inference_of_one_stage_is_exported():
    model, image = (
        with_methods("class_aware_rpn", inference=lambda x: [y[:2] for y in x]),
        noise(64, 96),
    )
    assert len(inference_network(model)(image)[0]) == 2


def test_boxes_are_clipped_to_the_image():
    """Boxes are clipped even if another project's predictor does not clip them."""
    model, image = small_network("rfcn"), noise(64, 96)
    predictor = model.roi_heads.box_predictor

    def inference(predictions, proposals):
        results = type(predictor).inference(predictor, predictions, proposals)
        for found in results[0]:
            found.pred_boxes.tensor += 20
        return results

    predictor.inference = inference
    boxes = inference_network(model)(image)[0]
    assert boxes[:, 2].max() == 96 and boxes[:, 3].max() == 64
