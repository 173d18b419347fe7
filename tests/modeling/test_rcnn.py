"""predict_raw of a GeneralizedRCNN: ordinary inference follows from it."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances

from d2_deformable.modeling import DeformRCNN, RFCNHeads, predict_raw

HEADS = {
    "faster_rcnn": ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"],
    "faster_rcnn_agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "faster_rcnn_dpool": [
        *("MODEL.ROI_HEADS.NAME", "DeformROIHeads"),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "DeformROIPool"),
    ],
    "rfcn": [
        *("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "PSROIPool"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
    "rfcn_dpool": [
        *("MODEL.ROI_HEADS.NAME", "RFCNHeads"),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "DeformPSROIPool"),
    ],
    "cascade": [
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
}
AGNOSTIC = ("faster_rcnn_agnostic", "rfcn", "cascade")


@pytest.fixture
def build(small_rcnn_cfg):
    def build(*overrides):
        small_rcnn_cfg.merge_from_list(overrides)
        model = build_model(small_rcnn_cfg).eval()
        for name, p in model.roi_heads.named_parameters():  # scores and boxes that differ
            if "cls_score" in name or "bbox_pred" in name:
                torch.nn.init.normal_(p, std=0.05)
        return model

    return build


def image(*size, **fields):
    pixels = torch.randint(0, 256, (3, *(size or (64, 96))), dtype=torch.uint8)
    return {"image": pixels, **fields}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_inference_is_threshold_and_nms_of_the_raw_prediction(build, kind):
    model = build(*HEADS[kind])
    inputs = [image(), image(48, 80)]
    expected = model(inputs)
    assert type(model) is GeneralizedRCNN and len(expected[0]["instances"]) > 1
    raw = predict_raw(model, inputs)
    for (boxes, scores), x, output in zip(raw, inputs, expected, strict=True):
        rows = len(boxes)
        assert boxes.shape == (rows, 1 if kind in AGNOSTIC else 3, 4)
        assert scores.shape == (rows, 4)
        torch.testing.assert_close(scores.sum(1), torch.ones(rows))
        (found,), _ = fast_rcnn_inference(
            [boxes.flatten(1)], [scores], [x["image"].shape[1:]], 0.05, 0.5, 100
        )
        found = found[found.pred_boxes.nonempty()]
        instances = output["instances"]
        assert torch.equal(found.pred_boxes.tensor, instances.pred_boxes.tensor)
        assert torch.equal(found.scores, instances.scores)
        assert torch.equal(found.pred_classes, instances.pred_classes)


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_boxes_are_those_of_the_original_image(build, kind):
    model = build(*HEADS[kind])
    x = image()
    ((small, scores),) = predict_raw(model, [x])
    ((large, same),) = predict_raw(model, [x | {"height": 128, "width": 288}])
    assert torch.equal(scores, same)
    torch.testing.assert_close(large, small * torch.tensor([3.0, 2.0, 3.0, 2.0]))


@torch.no_grad()
def test_boxes_are_clipped_to_the_original_image(build):
    model = build("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    model.roi_heads.box_predictor.bbox_pred.bias.fill_(0)[2:] = 20.0  # much wider and taller
    boxes, _ = predict_raw(model, [image(height=128, width=288)])[0]
    assert torch.equal(boxes, torch.tensor([0.0, 0, 288, 128]).expand_as(boxes))


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_given_boxes_replace_proposals(build, kind):
    model = build(*HEADS[kind])
    inputs = [image(height=128, width=192), image(48, 80)]
    images = model.preprocess_image(inputs)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    boxes = [proposals[0].proposal_boxes.tensor * 2, proposals[1].proposal_boxes]
    pairs = zip(predict_raw(model, inputs, boxes), predict_raw(model, inputs), strict=True)
    for given, own in pairs:
        torch.testing.assert_close(given, own)


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_no_boxes_give_no_predictions(build, kind):
    model = build(*HEADS[kind])
    boxes, scores = predict_raw(model, [image()], [torch.zeros(0, 4)])[0]
    assert boxes.shape == (0, 1 if kind in AGNOSTIC else 3, 4) and scores.shape == (0, 4)


@torch.no_grad()
def test_precomputed_proposals(build):
    model = build("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    x = image(height=128, width=192)
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 10, 90, 60]])
    (own,) = predict_raw(
        model, [{**x, "proposals": Instances((64, 96), proposal_boxes=Boxes(boxes))}]
    )
    (given,) = predict_raw(model, [x], [boxes * 2])
    torch.testing.assert_close(own, given)


def test_weights_fit_detectron2s_network(build, small_rcnn_cfg):
    theirs = build().state_dict()
    small_rcnn_cfg.MODEL.META_ARCHITECTURE = "DeformRCNN"  # as in older YAMLs
    model = build_model(small_rcnn_cfg).eval()
    assert type(model) is DeformRCNN and model.state_dict().keys() == theirs.keys()
    model.load_state_dict(theirs)
    inputs = [image()]
    assert len(predict_raw(model, inputs)) == len(model(inputs)) == 1


def test_bad_input_is_named(build):
    with pytest.raises(ValueError, match="GeneralizedRCNN got no image; expected a list of dicts"):
        predict_raw(build(), [])
    model = build("MODEL.META_ARCHITECTURE", "DeformRCNN")
    nothing = "DeformRCNN got no image; expected a list of dicts"
    with pytest.raises(ValueError, match=nothing):
        model([])
    with pytest.raises(ValueError, match=nothing):
        predict_raw(model, [])
    with pytest.raises(ValueError, match=r"tensor \(R, 4\) for each image, in a list; got \(4,\)"):
        predict_raw(model, [image()], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="one .* tensor per image, 1 in all; got 2"):
        predict_raw(model, [image()], [torch.zeros(1, 4)] * 2)
    model.train()
    with pytest.raises(ValueError, match=nothing):
        model([])
    with pytest.raises(AssertionError, match="call eval"):
        predict_raw(model, [image()])


def test_heads_with_their_own_inference_are_refused(build):
    class OwnWay(RFCNHeads):
        """Heads whose own inference differs from the inherited `predict_boxes`."""

        def _forward_box(self, features, proposals):
            raise NotImplementedError

    class BothWays(OwnWay):
        def predict_boxes(self, features, proposals):
            return [torch.zeros(2, 4)], [torch.ones(2, 4) / 4]

    model = build(*HEADS["rfcn"])
    model.roi_heads.__class__ = OwnWay
    with pytest.raises(ValueError, match="does not know how OwnWay computes its boxes"):
        predict_raw(model, [image()])
    model.roi_heads.__class__ = BothWays
    ((boxes, scores),) = predict_raw(model, [image()])
    assert boxes.shape == (2, 1, 4) and scores.shape == (2, 4)
