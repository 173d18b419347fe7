import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads, build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_deformable.engine.preflight import check_settings
from d2_deformable.layers import DeformRoIAlign, DeformRoIPool, PSRoIPredictor
from d2_deformable.modeling import OHEMMixin
from d2_deformable.modeling.poolers import DeformROIPooler, LegacyROIPooler
from d2_deformable.modeling.roi_heads.ohem import loss_per_roi, select_hard_examples
from d2_deformable.modeling.roi_heads.predict_boxes import find_predict_boxes, predict_standard
from d2_deformable.modeling.roi_heads.rfcn import POOLER_TYPES

SHAPES = {"f": ShapeSpec(channels=6, stride=16)}
NUM_CLASSES = 3


@pytest.fixture
def heads_cfg(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["f"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    return cfg


def rfcn(cfg, pooler="PSROIPool", sampling="random", agnostic=True):
    cfg.MODEL.ROI_HEADS.NAME = "RFCNHeads"
    cfg.MODEL.ROI_HEADS.SAMPLING = sampling
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    return build_roi_heads(cfg, SHAPES)


def inputs(num_gt=(2, 1), num_proposals=(20, 15), seed=0):
    """Features, proposals and targets for two images of 96 x 128 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(n):
        corner = torch.rand(n, 2, generator=generator) * torch.tensor([90.0, 60.0])
        size = 8 + torch.rand(n, 2, generator=generator) * 28
        return torch.cat([corner, corner + size], dim=1)

    proposals, targets = [], []
    for gt, n in zip(num_gt, num_proposals, strict=True):
        gt_boxes = boxes(gt)
        near = gt_boxes[torch.arange(n // 2) % gt] + 2 if gt else boxes(n // 2)
        proposal_boxes = torch.cat([near, boxes(n - n // 2)])
        proposals.append(
            Instances(
                (96, 128),
                proposal_boxes=Boxes(proposal_boxes),
                objectness_logits=torch.zeros(n),
            )
        )
        classes = torch.arange(gt) % NUM_CLASSES
        targets.append(Instances((96, 128), gt_boxes=Boxes(gt_boxes), gt_classes=classes))
    features = {"f": torch.randn(2, 6, 6, 8, generator=generator)}
    return features, proposals, targets


RFCN_POOLERS = pytest.mark.parametrize("pooler", POOLER_TYPES)


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("sampling", ["random", "ohem"])
@RFCN_POOLERS
def test_rfcn_trains_every_parameter_and_infers(heads_cfg, pooler, sampling, agnostic):
    heads = rfcn(heads_cfg, pooler, sampling, agnostic)
    features, proposals, targets = inputs()
    with EventStorage():
        _, losses = heads(None, features, proposals, targets)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    assert not any(isinstance(m, nn.Linear) for m in heads.modules())

    heads.eval()
    detections, _ = heads(None, features, inputs()[1], None)
    assert [len(d) > 0 for d in detections] == [True, True]
    assert detections[0].pred_classes.max() < NUM_CLASSES


@RFCN_POOLERS
@pytest.mark.parametrize("sampling", ["random", "ohem"])
def test_rfcn_without_objects_or_proposals(heads_cfg, pooler, sampling):
    heads = rfcn(heads_cfg, pooler, sampling)
    for num_gt, num_proposals in [((0, 0), (5, 5)), ((0, 1), (5, 0)), ((0, 0), (0, 0))]:
        features, proposals, targets = inputs(num_gt, num_proposals)
        with EventStorage():
            _, losses = heads(None, features, proposals, targets)
        if sum(num_proposals) + sum(num_gt):
            assert torch.isfinite(sum(losses.values()))
        detections, _ = heads.eval()(None, features, inputs(num_gt, num_proposals)[1], None)
        assert [len(d) for d in detections] == [0, 0] or sum(num_proposals)
        heads.train()


def test_rfcn_layers(heads_cfg):
    heads = rfcn(heads_cfg, "DeformPSROIPool")
    shapes = {name: tuple(p.shape[:2]) for name, p in heads.named_parameters() if "weight" in name}
    assert shapes == {
        "box_predictor.cls_score.score_maps.weight": (9 * (NUM_CLASSES + 1), 6),
        "box_predictor.cls_score.offset_maps.weight": (9 * 2 * (NUM_CLASSES + 1), 6),
        "box_predictor.bbox_pred.score_maps.weight": (9 * 4, 6),
        "box_predictor.bbox_pred.offset_maps.weight": (9 * 2, 6),
    }


@pytest.mark.parametrize("agnostic", [True, False])
def test_ohem_ranks_by_the_loss_it_trains_on(heads_cfg, agnostic):
    heads = rfcn(heads_cfg, sampling="ohem", agnostic=agnostic)
    for p in heads.parameters():
        nn.init.normal_(p, std=0.3)
    features, proposals, targets = inputs()
    with EventStorage():
        labelled = heads.label_and_sample_proposals(proposals, targets)
        assert [len(p) for p in labelled] == [22, 16]  # all, with the ground truth
        predictions = heads.predict_ranking(features, labelled)
        losses = heads.box_predictor.losses(predictions, labelled)
    per_roi = loss_per_roi(heads.box_predictor, predictions, labelled)
    torch.testing.assert_close(per_roi.mean(), losses["loss_cls"] + losses["loss_box_reg"])

    kept = select_hard_examples(labelled, per_roi, 8)
    assert [len(p) for p in kept] == [8, 8]
    with EventStorage():
        predictions = heads.predict_ranking(features, kept)
        kept_losses = heads.box_predictor.losses(predictions, kept)
        _, trained = heads(None, features, inputs()[1], targets)
    assert kept_losses["loss_cls"] + kept_losses["loss_box_reg"] > per_roi.mean()
    torch.testing.assert_close(trained, kept_losses)


def ohem(cfg, name, mask=False):
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.SAMPLING = "ohem"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 4
    return build_roi_heads(cfg, SHAPES)


@pytest.mark.parametrize("pooler", ["ROIAlignV2", "DeformROIPool"])
@pytest.mark.parametrize("name", ["DeformROIHeads", "DeformCascadeROIHeads"])
def test_ohem_of_any_roi_head(heads_cfg, name, pooler):
    """The hardest are kept: of a cascade, those of its first stage. All parameters train."""
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    heads = ohem(heads_cfg, name)
    for p in heads.parameters():
        nn.init.normal_(p, std=0.3)
    features, proposals, targets = inputs()
    with EventStorage():
        candidates = heads.label_and_sample_proposals(inputs()[1], targets)
        assert [len(p) for p in candidates] == [22, 16]
        predictions = heads.predict_ranking(features, candidates)
        losses = heads.ranking_predictor.losses(predictions, candidates)
        per_roi = loss_per_roi(heads.ranking_predictor, predictions, candidates)
        torch.testing.assert_close(per_roi.mean(), losses["loss_cls"] + losses["loss_box_reg"])
        hardest = select_hard_examples(candidates, per_roi, 8)
        kept, losses = heads(None, features, proposals, targets)
    for ours, expected in zip(kept, hardest, strict=True):
        assert torch.equal(ours.proposal_boxes.tensor, expected.proposal_boxes.tensor)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    assert len(heads.eval()(None, features, inputs()[1], None)[0]) == 2
    assert find_predict_boxes(type(heads)) is not None


def test_ohem_also_chooses_what_the_mask_head_trains_on(heads_cfg):
    heads = ohem(heads_cfg, "DeformROIHeads", mask=True)
    seen = []
    heads.mask_head.register_forward_pre_hook(lambda module, args: seen.extend(args[1]))
    features, proposals, targets = inputs()
    for target in targets:
        target.gt_masks = BitMasks(torch.ones(len(target), 96, 128))
    with EventStorage():
        kept, losses = heads(None, features, proposals, targets)
    assert [len(p) for p in kept] == [8, 8] and "loss_mask" in losses
    foreground = [int((p.gt_classes < NUM_CLASSES).sum()) for p in kept]
    assert [len(p) for p in seen] == foreground


class OtherHeads(OHEMMixin, StandardROIHeads):
    pass


def test_heads_of_another_project_can_mine_too():
    assert find_predict_boxes(OtherHeads) is predict_standard


# ---- R-FCN on a pyramid --------------------------------------------------------------------------

LEVELS = {f"p{i}": ShapeSpec(channels=6, stride=2**i) for i in (3, 4, 5)}


def rfcn_on_levels(cfg, pooler):
    cfg.MODEL.ROI_HEADS.NAME = "RFCNHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = [*LEVELS]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    heads = build_roi_heads(cfg, LEVELS)
    for p in heads.parameters():
        nn.init.normal_(p, std=0.3)
    return heads


def maps_of_levels():
    return {
        name: torch.randn(2, 6, 512 // shape.stride, 640 // shape.stride)
        for name, shape in LEVELS.items()
    }


@pytest.mark.parametrize("sampling", ["random", "ohem"])
@RFCN_POOLERS
def test_rfcn_pools_each_roi_from_its_level(heads_cfg, pooler, sampling):
    heads_cfg.MODEL.ROI_HEADS.SAMPLING = sampling
    heads = rfcn_on_levels(heads_cfg, pooler)
    features, predictor = maps_of_levels(), heads.box_predictor
    boxes = [[10.0, 20, 60, 50], [5, 5, 600, 500], [30, 30, 280, 270], [0, 0, 90, 100]]
    images, levels = [0, 0, 0, 1], ["p3", "p5", "p4", "p3"]  # 224 pixels: p4
    boxes = torch.tensor(boxes)
    lists = [Boxes(boxes[:3]), Boxes(boxes[3:])]
    scores, deltas = predictor([*features.values()], lists)
    for i, (image, level) in enumerate(zip(images, levels, strict=True)):
        roi = torch.cat([torch.tensor([image]), boxes[i]])[None]
        scale = 1 / LEVELS[level].stride
        for layer, found in ((predictor.cls_score, scores), (predictor.bbox_pred, deltas)):
            alone = PSRoIPredictor(
                6,
                found.shape[1],
                3,
                spatial_scale=scale,
                offset_classes=layer.offset_maps is not None
                and (1, found.shape[1])[found is scores],
                interpolate=layer.interpolate,
                modulated=layer.modulated,
            )
            alone.load_state_dict(layer.state_dict())
            torch.testing.assert_close(found[i], alone(features[level], roi)[0])
            if layer.offset_maps is not None:
                offset, scales = predictor.predict_offsets(layer, [*features.values()], lists)
                torch.testing.assert_close(
                    offset[i], alone.predict_offsets(features[level], roi).offset[0]
                )
                assert scales[i] == scale
    assert len(predictor([*features.values()], [Boxes(boxes[:0])] * 2)[0]) == 0

    _, proposals, targets = inputs()
    with EventStorage():
        _, losses = heads(None, features, proposals, targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    detections, _ = heads.eval()(None, features, inputs()[1], None)
    assert [len(d) > 0 for d in detections] == [True, True]


def test_rfcn_needs_levels_of_equal_channels(heads_cfg):
    other = LEVELS | {"p4": ShapeSpec(channels=7, stride=16)}
    heads_cfg.MODEL.ROI_HEADS.NAME = "RFCNHeads"
    heads_cfg.MODEL.ROI_HEADS.IN_FEATURES = [*LEVELS]
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "PSROIPool"
    with pytest.raises(ValueError, match="expected channels and stride .* levels with equal chan"):
        build_roi_heads(heads_cfg, other)


def test_ohem_leaves_out_what_the_matcher_ignores(heads_cfg):
    heads_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.1, 0.5]
    heads_cfg.MODEL.ROI_HEADS.IOU_LABELS = [-1, 0, 1]
    heads = rfcn(heads_cfg, sampling="ohem")
    index, classes = heads._sample_proposals(
        torch.tensor([0, 1, 0]), torch.tensor([1, -1, 0]), torch.tensor([2, 1])
    )
    assert index.tolist() == [0, 2] and classes.tolist() == [2, NUM_CLASSES]


def test_ohem_refuses_another_box_loss(heads_cfg):
    heads_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    with pytest.raises(ValueError, match="LOSS_TYPE is giou .* set them to smooth_l1"):
        rfcn(heads_cfg, sampling="ohem")


@pytest.mark.parametrize(
    "name, pooler", [("RFCNHeads", "PSROIPool"), ("DeformROIHeads", "DeformROIPool")]
)
def test_a_config_without_our_keys_says_what_to_do(heads_cfg, name, pooler):
    heads_cfg.MODEL.ROI_HEADS.NAME = name
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    del heads_cfg.MODEL.RESNETS["DEFORM_NUM_LAYERS"], heads_cfg.MODEL.ROI_HEADS["SAMPLING"]
    with pytest.raises(ValueError, match="call d2_deformable.add_deformable_config"):
        build_roi_heads(heads_cfg, SHAPES)


@pytest.mark.parametrize("pooler", ["DeformROIPool", "ModulatedDeformROIPool"])
def test_offset_layers_per_level(heads_cfg, pooler):
    heads_cfg.MODEL.ROI_HEADS.NAME = "DeformROIHeads"
    heads_cfg.MODEL.ROI_HEADS.IN_FEATURES = [*LEVELS]
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    heads_cfg.MODEL.ROI_BOX_HEAD.DEFORM_OFFSETS_PER_LEVEL = True
    heads_cfg.MODEL.ROI_BOX_HEAD.DEFORM_GAMMA = 0.2
    heads_cfg.MODEL.WEIGHTS = "R-50.pkl"
    check_settings(heads_cfg)
    layers = build_roi_heads(heads_cfg, LEVELS).box_pooler.roi_pool
    firsts = [next(m for m in x.modules() if isinstance(m, nn.Linear)) for x in layers]
    assert [(x.gamma, fc.in_features) for x, fc in zip(layers, firsts, strict=True)] == (
        [(0.2, 6 * 9)] * 3
    )


@pytest.mark.parametrize("pooler", ["DeformROIPool", "ModulatedDeformROIPool"])
@pytest.mark.parametrize("name", ["DeformROIHeads", "DeformCascadeROIHeads"])
def test_deformable_roi_pooling_in_detectron2s_heads(heads_cfg, name, pooler):
    heads_cfg.MODEL.ROI_HEADS.NAME = name
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    heads_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    heads = build_roi_heads(heads_cfg, SHAPES)
    pool = heads.box_pooler.roi_pool
    layers = [m for m in pool.modules() if isinstance(m, nn.Linear)]
    assert layers[0].in_features == 6 * 9
    assert len(layers) == (3 if pooler.startswith("Modulated") else 1)
    assert layers[-1].out_features == 9 * (3 if pooler.startswith("Modulated") else 2)
    features, proposals, targets = inputs()
    with EventStorage():
        _, losses = heads(None, features, proposals, targets)
    sum(losses.values()).backward()
    assert layers[-1].weight.grad.abs().sum() > 0
    assert len(heads.eval()(None, features, inputs()[1], None)[0]) == 2


@pytest.mark.parametrize("pooler", ["DeformROIAlign", "ModulatedDeformROIAlign"])
@pytest.mark.parametrize("name", ["DeformROIHeads", "DeformCascadeROIHeads"])
def test_roi_pooling_of_mmdetection(heads_cfg, name, pooler):
    heads_cfg.MODEL.ROI_HEADS.NAME = name
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    heads_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    heads_cfg.MODEL.ROI_BOX_HEAD.DEFORM_GAMMA = 0.2
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    heads = build_roi_heads(heads_cfg, SHAPES)
    (pool,) = heads.box_pooler.roi_pool
    assert [pool.gamma, pool.sampling_ratio, pool.output_size] == [0.2, 2, 3]
    assert (pool.mask_fc is not None) == pooler.startswith("Modulated")
    features, proposals, targets = inputs()
    with EventStorage():
        _, losses = heads(None, features, proposals, targets)
    sum(losses.values()).backward()
    assert pool.offset_fc[-1].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in pool.parameters())
    assert len(heads.eval()(None, features, inputs()[1], None)[0]) == 2


def test_levels_may_have_their_own_layers():
    """A level without RoIs gets a gradient too, because distributed training waits for it."""
    torch.manual_seed(0)
    pools = nn.ModuleList(DeformRoIAlign(4, 3, hidden_channels=8) for _ in range(3))
    for pool in pools:
        nn.init.normal_(pool.offset_fc[-1].weight)
    pooler = DeformROIPooler(pools, scales=(1 / 8, 1 / 16, 1 / 32))
    maps = [torch.randn(1, 4, 32 // s, 40 // s) for s in (1, 2, 4)]
    boxes = torch.tensor([[0.0, 0, 240, 230], [5, 5, 30, 25], [10, 0, 110, 120]])
    pooled = pooler(maps, [Boxes(boxes)])
    rois = nn.functional.pad(boxes, (1, 0))
    for i, level in enumerate([1, 0, 0]):
        expected = pools[level](maps[level], rois[i : i + 1], pooler.scales[level])[0]
        torch.testing.assert_close(pooled[i], expected)
    pooled.sum().backward()
    assert all(p.grad is not None for p in pooler.parameters())
    assert not any(p.grad.any() for p in pools[2].parameters())
    assert pooler(maps, [Boxes(boxes[:0])]).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("name", ["DeformROIHeads", "DeformCascadeROIHeads"])
def test_legacy_roi_pooling_in_detectron2s_heads(heads_cfg, name):
    heads_cfg.MODEL.ROI_HEADS.NAME = name
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "LegacyROIPool"
    heads_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    assert isinstance(build_roi_heads(heads_cfg, SHAPES).box_pooler, LegacyROIPooler)


def test_legacy_roi_pooling_ends_with_the_last_pixel():
    """A box of 16 x 16 pixels ends with pixel 15. As 15 / 16 rounds to 1 and 0 / 16 to 0, it covers
    a cell and its neighbours. A box of 8 x 8 pixels covers only the cell."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    pooler = LegacyROIPooler(1, [1 / 16])
    boxes = [Boxes(torch.tensor([[0.0, 0, 16, 16], [0, 0, 8, 8], [16, 16, 25, 25]]))]
    assert pooler([x], boxes).flatten().tolist() == [5.0, 0.0, 10.0]


def test_pooler_keeps_the_order_of_rois_over_levels():
    torch.manual_seed(0)
    pool = DeformRoIPool(4, 3)
    nn.init.normal_(pool.offset_fc.weight)
    pooler = DeformROIPooler(pool, scales=(1 / 8, 1 / 16, 1 / 32))
    maps = [torch.randn(2, 4, 32 // s, 40 // s) for s in (1, 2, 4)]
    boxes = [
        Boxes(torch.tensor([[0.0, 0, 240, 230], [5, 5, 30, 25], [10, 0, 110, 120]])),
        Boxes(torch.tensor([[20.0, 30, 70, 60]])),
    ]
    pooled = pooler(maps, boxes)
    levels = [1, 0, 0, 0]  # 224-pixel boxes belong to stride 16
    rois = torch.cat([torch.tensor([[0.0], [0], [0], [1]]), Boxes.cat(boxes).tensor], dim=1)
    assert pooled.shape == (4, 4, 3, 3)
    for i, level in enumerate(levels):
        expected = pool(maps[level], rois[i : i + 1], pooler.scales[level])[0]
        torch.testing.assert_close(pooled[i], expected)
    none = pooler(maps, [Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(0, 4))])
    assert none.shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2"},
            "takes one of PSROIPool, PSROIAverage",
        ),
        ({"ROI_HEADS.SAMPLING": "hard"}, "'hard'; choose 'random' or 'ohem'"),
        ({"ROI_HEADS.IN_FEATURES": ["f", "f"]}, r"strides \[16, 16\]; expected levels"),
    ],
)
def test_bad_settings_say_what_to_do(heads_cfg, change, message):
    heads_cfg.MODEL.ROI_HEADS.NAME = "RFCNHeads"
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "PSROIPool"
    heads_cfg.merge_from_list([x for k, v in change.items() for x in (f"MODEL.{k}", v)])
    with pytest.raises(ValueError, match=message):
        build_roi_heads(heads_cfg, SHAPES)
