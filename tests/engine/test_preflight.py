import re
import sys

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_HEADS_REGISTRY,
    StandardROIHeads,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY, StandardRPNHead

from d2_deformable import add_deformable_config
from d2_deformable.checkpoint import load_model
from d2_deformable.engine import Trainer, check_settings, check_weights, preflight
from d2_deformable.engine.preflight import check_evaluation
from d2_deformable.modeling import RFCNHeads, build_deform_resnet_backbone


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_deformable_config(cfg)
    return cfg


@pytest.fixture
def register():
    """Register an entry as a user's project does; remove it afterwards."""
    entries = []

    def register(registry, entry):
        registry.register(entry)
        entries.append((registry, entry.__name__))
        return entry.__name__

    yield register
    for registry, name in entries:
        del registry._obj_map[name]


def test_random_frozen_layers_are_refused(cfg):
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(ValueError, match="FREEZE_AT 2 and MODEL.RESNETS.NORM FrozenBN freezes"):
        check_settings(cfg)
    cfg.MODEL.RESNETS.NORM = "BN"
    with pytest.raises(ValueError, match="FREEZE_AT 2 freezes"):
        check_settings(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    check_settings(cfg)
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.BACKBONE.ALLOW_FROZEN_RANDOM = True
    check_settings(cfg)
    cfg.MODEL.BACKBONE.ALLOW_FROZEN_RANDOM = False
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    check_settings(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["MODEL.RESNETS.DEFORM_NUM_LAYERS", 3],
            "build_resnet_backbone does not read",
        ),
        (["MODEL.RESNETS.DEFORM_LAYERS", ["res5.2.conv2"]], "does not read .* DEFORM_LAYERS"),
        (["MODEL.ROI_HEADS.SAMPLING", "ohem"], "Res5ROIHeads does not read .*SAMPLING ohem"),
        (
            ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "DeformROIPool"],
            "Res5ROIHeads does not support .*DeformROIPool; choose DeformROIHeads",
        ),
        (
            ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "PSROIPool"],
            "Res5ROIHeads does not support .*PSROIPool; choose RFCNHeads",
        ),
    ],
)
def test_settings_that_nothing_reads_are_refused(cfg, changes, message):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.merge_from_list(changes)
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["ROI_HEADS.NAME", "RFCNHeads"], "MODEL.ROI_HEADS.NAME RFCNHeads: leave it Res5ROIHeads"),
        (["ROI_HEADS.SAMPLING", "ohem"], "MODEL.ROI_HEADS.SAMPLING ohem: leave it random"),
        (["ROI_BOX_HEAD.POOLER_TYPE", "DeformROIPool"], "POOLER_TYPE DeformROIPool: leave it ROI"),
        (["RPN.HEAD_NAME", "MyHead"], "HEAD_NAME MyHead: leave it StandardRPNHead"),
        (["MASK_ON", True], "MODEL.MASK_ON True: leave it False"),
        (["KEYPOINT_ON", True], "KEYPOINT_ON True: leave it False"),
        (["LOAD_PROPOSALS", True], "LOAD_PROPOSALS True: leave it False"),
    ],
)
def test_a_class_aware_rpn_has_no_second_stage(cfg, changes, message, register):
    class MyHead(StandardRPNHead):
        pass

    register(RPN_HEAD_REGISTRY, MyHead)
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.META_ARCHITECTURE = "ClassAwareRPN"
    check_settings(cfg)
    cfg.merge_from_list([f"MODEL.{changes[0]}", changes[1]])
    message = f"ClassAwareRPN has no second stage and does not read .*{message}"
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)


@pytest.mark.parametrize("name", ["build_resnet_backbone", "build_resnet_fpn_backbone"])
def test_detectron2s_own_backbones_read_no_number_of_layers(cfg, name):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.BACKBONE.NAME = name
    check_settings(cfg)
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 1
    with pytest.raises(ValueError, match=f"{name} does not read"):
        check_settings(cfg)


@pytest.mark.parametrize(
    "name",
    [
        "build_aligned_inception_resnet_backbone",
        "build_deform_resnet_backbone",
        "build_deform_resnet_fpn_backbone",
    ],
)
def test_our_backbones_read_the_number_of_layers(cfg, name):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 1
    cfg.MODEL.RESNETS.DEFORM_LAYERS = ["res2.0.conv2"]
    check_settings(cfg)


def test_a_users_backbone_may_read_the_number_of_layers(cfg, register):
    def build_xyz_backbone(cfg, input_shape):
        return build_deform_resnet_backbone(cfg, input_shape)

    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.BACKBONE.NAME = register(BACKBONE_REGISTRY, build_xyz_backbone)
    cfg.MODEL.RESNETS.DEFORM_NUM_LAYERS = 1
    check_settings(cfg)


class XYZHeads(RFCNHeads):
    pass


class OtherHeads(StandardROIHeads):
    pass


def build_xyz_heads(cfg, input_shape):
    return XYZHeads(cfg, input_shape)


def test_a_users_heads_read_sampling_where_rfcn_heads_do(cfg, register):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.ROI_HEADS.SAMPLING = "ohem"
    ours = "DeformROIHeads", "DeformCascadeROIHeads"
    for heads in (*(register(ROI_HEADS_REGISTRY, h) for h in (XYZHeads, build_xyz_heads)), *ours):
        cfg.MODEL.ROI_HEADS.NAME = heads
        check_settings(cfg)
    for name in (register(ROI_HEADS_REGISTRY, OtherHeads), "StandardROIHeads", "Res5ROIHeads"):
        cfg.MODEL.ROI_HEADS.NAME = name
        with pytest.raises(ValueError, match=f"{name} does not read .*; choose RFCNHeads, Deform"):
            check_settings(cfg)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("FPN.TOP_BLOCK", "LastLevelP6", "build_resnet_backbone does not read MODEL.FPN.TOP_BLOCK"),
        ("ROI_BOX_HEAD.DEFORM_OFFSETS_PER_LEVEL", True, "is ROIAlignV2; only Deform.* read it"),
    ],
)
def test_keys_of_pyramids_that_nothing_reads_are_refused(cfg, key, value, message):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.merge_from_list(["MODEL.WEIGHTS", "R-50.pkl", f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)


@pytest.mark.parametrize(
    "key, name, message",
    [
        ("META_ARCHITECTURE", "GeneralisedRCNN", "did you mean GeneralizedRCNN"),
        ("BACKBONE.NAME", "build_deform_resnet_backbon", "did you mean build_deform_resnet_back"),
        ("ROI_HEADS.NAME", "RFCNHead", "did you mean RFCNHeads"),
        ("ROI_BOX_HEAD.NAME", "FastRCNNHead", "did you mean FastRCNN"),
        ("SEM_SEG_HEAD.NAME", "xyz", "import the module that registers it"),
        ("PROPOSAL_GENERATOR.NAME", "RPNN", "did you mean RPN"),
        ("ANCHOR_GENERATOR.NAME", "Anchors", "import the module that registers it"),
        ("RPN.HEAD_NAME", "StandardRPN", "did you mean StandardRPNHead"),
    ],
)
def test_names_that_are_not_registered_are_refused(cfg, key, name, message):
    cfg.merge_from_list(["MODEL.WEIGHTS", "R-50.pkl", f"MODEL.{key}", name])
    with pytest.raises(ValueError, match=f"MODEL.{key} {name} is not registered: {message}"):
        check_settings(cfg)


@pytest.mark.parametrize("key", ["META_ARCHITECTURE", "BACKBONE.NAME", "ROI_HEADS.NAME"])
def test_empty_names_are_refused(cfg, key):
    cfg.merge_from_list(["MODEL.WEIGHTS", "R-50.pkl", f"MODEL.{key}", ""])
    with pytest.raises(ValueError, match=f"MODEL.{key} is empty, which is not registered"):
        check_settings(cfg)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("RPN.IN_FEATURES", ["foo"], "KeyError: 'foo'"),
        ("ANCHOR_GENERATOR.SIZES", [], "AssertionError: sizes in anchor generator cannot be empty"),
        ("RPN.IOU_THRESHOLDS", [], "IndexError: "),
        ("PIXEL_MEAN", [1.0], "AssertionError: "),
    ],
)
def test_what_builds_no_model_is_one_sentence(cfg, key, value, message):
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=rf"the config builds no model \({message}") as error:
        Trainer.build_model(cfg)
    assert str(error.value).isprintable()


def test_evaluation_of_semantic_segmentation(cfg):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    for value in ("full", "resized_ground_truth", "resized_prediction"):
        cfg.TEST.SEM_SEG_RESOLUTION = value
        check_settings(cfg)
    cfg.TEST.SEM_SEG_RESOLUTION = "released"
    with pytest.raises(ValueError, match="is 'released'; choose one of full, resized_ground_truth"):
        check_settings(cfg)
    cfg.TEST.SEM_SEG_RESOLUTION = "full"
    cfg.TEST.AUG.ENABLED = True
    check_settings(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    with pytest.raises(ValueError, match="TEST.AUG does not support .* SemanticSegmentor"):
        check_settings(cfg)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("GeneralizedRCNN", "Res5ROIHeads"),
        ("ProposalNetwork", "StandardROIHeads"),
        ("DeformSegmentor", "StandardROIHeads"),
    ],
)
def test_box_average_needs_raw_predictions(cfg, architecture, heads):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.TEST.BOX_AVERAGE.ENABLED = True
    with pytest.raises(ValueError, match=f"BOX_AVERAGE does not .* {architecture} .* {heads};"):
        check_settings(cfg)


def test_several_scales_need_a_detector_and_a_scale(cfg):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.TEST.AUG.ENABLED = True
    check_settings(cfg)  # Detectron2's own test-time augmentation of GeneralizedRCNN
    for sizes in ((), (0, 480)):
        cfg.TEST.AUG.MIN_SIZES = sizes
        with pytest.raises(ValueError, match="MIN_SIZES is .*; give one or more short sides"):
            check_settings(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(ValueError, match="TEST.AUG does not support .* ProposalNetwork"):
        check_settings(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["TEST.VOC_METRIC", "'2007'"], "VOC_METRIC is '2007'; choose one of 'area', '07'"),
        (["TEST.EARLY_STOP_PATIENCE", 2], "PATIENCE is 2 and TEST.BEST_METRIC is empty"),
        (["TEST.BEST_METRIC", "bbox/AP"], "BEST_METRIC is bbox/AP and TEST.EVAL_PERIOD 0; exp"),
        (["TEST.BOX_AVERAGE.ITERATIONS", 0], "ITERATIONS is 0; give 1 pass or more"),
        (["TEST.BOX_AVERAGE.VOTE_IOU", 0.0], "VOTE_IOU is 0.0; give an IoU above 0"),
        (["TEST.BOX_AVERAGE.VOTE_IOU", 1.5], "VOTE_IOU is 1.5; give an IoU above 0"),
        (["MODEL.MASK_ON", True], "averages boxes, not masks"),
        (["MODEL.META_ARCHITECTURE", "ClassAwareRPN"], "second pass .*ITERATIONS 1"),
    ],
)
def test_what_evaluation_would_refuse_is_refused_at_once(cfg, changes, message):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.TEST.BOX_AVERAGE.ENABLED = True
    check_settings(cfg)
    cfg.merge_from_list(changes)
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)


SOFT_NMS = {
    ("GeneralizedRCNN", "DeformROIHeads"): None,
    ("GeneralizedRCNN", "DeformCascadeROIHeads"): None,
    ("GeneralizedRCNN", "RFCNHeads"): None,
    ("ClassAwareRPN", "Res5ROIHeads"): None,  # Detectron2's default, not read
    ("GeneralizedRCNN", "StandardROIHeads"): "StandardROIHeads does not read TEST.SOFT_NMS; choose",
    ("GeneralizedRCNN", "CascadeROIHeads"): "choose DeformROIHeads .* DeformCascadeROIHeads",
    ("SoftNMSRetinaNet", "Res5ROIHeads"): None,
    ("RetinaNet", "Res5ROIHeads"): "TEST.SOFT_NMS does not .* RetinaNet; .* SoftNMSRetinaNet",
}


@pytest.mark.parametrize(("names", "message"), SOFT_NMS.items(), ids=str)
def test_soft_nms_that_would_be_ignored(cfg, names, message):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = names
    cfg.TEST.SOFT_NMS.ENABLED = True
    if message is None:
        check_evaluation(cfg)
        cfg.TEST.SOFT_NMS.SIGMA = -1.0
        message = "SOFT_NMS.SIGMA is -1.0"
    with pytest.raises(ValueError, match=message):
        check_evaluation(cfg)
    with pytest.raises(ValueError, match=message):
        load_model(cfg, "none.pth")


def test_soft_nms_of_masks_at_several_scales(cfg):
    cfg.MODEL.ROI_HEADS.NAME = "DeformROIHeads"
    cfg.TEST.SOFT_NMS.ENABLED = cfg.MODEL.MASK_ON = True
    check_evaluation(cfg)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(ValueError, match="merged by ordinary NMS: set one of them False"):
        check_evaluation(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["MODEL_EMA.DECAY", 1.0], "MODEL_EMA.DECAY is 1.0; expected a share below 1"),
        (["OFFSET_HEALTH.PERIOD", -1], "OFFSET_HEALTH.PERIOD is -1; expected iterations"),
        (["SOLVER.LR_MULTIPLIERS", [["(", 2.0]]], r"LR_MULTIPLIERS holds \['\(', 2.0\]"),
        (["SOLVER.LR_MULTIPLIERS", [["offset", -1.0]]], "finite and not negative"),
        (["SOLVER.LR_MULTIPLIERS", ["offset"]], r"expected \[regex, factor\]"),
    ],
)
def test_invalid_settings_of_training_are_refused(cfg, changes, message):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    check_settings(cfg)
    cfg.merge_from_list(changes)
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)


def test_class_aware_rpn_averages_the_boxes_of_one_pass(cfg):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.META_ARCHITECTURE = "ClassAwareRPN"
    check_settings(cfg)
    cfg.TEST.BOX_AVERAGE.ENABLED, cfg.TEST.BOX_AVERAGE.ITERATIONS = True, 1
    check_settings(cfg)


def test_fixed_proposals_take_two_keys(cfg):
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(ValueError, match="LOAD_PROPOSALS is True and .*NAME is RPN: fixed propos"):
        check_settings(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    check_settings(cfg)
    cfg.MODEL.LOAD_PROPOSALS = False
    with pytest.raises(ValueError, match="LOAD_PROPOSALS is False and .*NAME is PrecomputedPropos"):
        check_settings(cfg)


def test_weights_that_are_not_there(cfg, tmp_path):
    zoo = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    for weights in ("", zoo, __file__, f"{__file__}?matching_heuristics=True"):
        cfg.MODEL.WEIGHTS = weights
        check_weights(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
    with pytest.raises(FileNotFoundError, match="backbone.pth: no such file, from MODEL.WEIGHTS"):
        check_weights(cfg)


def test_preflight_checks_what_the_run_needs(cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(DatasetCatalog.data, "a", list)
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        preflight(cfg)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.TRAIN = ("a",)
    with pytest.raises(ValueError, match="PROPOSAL_FILES_TRAIN holds 0 files"):
        preflight(cfg)
    with pytest.raises(ValueError, match="Evaluation would use random weights"):
        preflight(cfg, eval_only=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty, so what"):
        preflight(cfg, eval_only=True, resume=True)


@pytest.mark.parametrize(
    "warmup, iterations, schedule, message",
    [
        # Detectron2 then compresses the warm-up into the run.
        (100, 60, "WarmupMultiStepLR", r"rises for the whole run and reaches 0.0197 in iteration"),
        (40, 60, "WarmupMultiStepLR", r"for more than half of the run and reaches 0.02 in .* 40 "),
        (
            100,
            60,
            "WarmupCosineLR",
            r"the whole run and reaches 3.33e-07 in .*WARMUP_ITERS 6, or t",
        ),
        (30, 60, "WarmupMultiStepLR", None),
    ],
)
def test_a_warmup_that_takes_most_of_the_run(cfg, caplog, warmup, iterations, schedule, message):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS = 0.02, (1300, 1500)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER = warmup, iterations
    cfg.SOLVER.LR_SCHEDULER_NAME = schedule
    cfg.MODEL.WEIGHTS = __file__
    cfg.freeze()
    for eval_only in (False, True):
        caplog.clear()
        with caplog.at_level("WARNING"):
            preflight(cfg, eval_only=eval_only)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == bool(message and not eval_only)
        assert all(re.search(message, text) for text in messages)


def test_pictures_without_tensorboard_are_refused(cfg, monkeypatch):
    monkeypatch.setattr(sys.modules[preflight.__module__], "find_spec", lambda name: None)
    cfg.MODEL.WEIGHTS = __file__
    preflight(cfg)
    cfg.VIS_PERIOD = 100
    preflight(cfg, eval_only=True)
    with pytest.raises(ValueError, match="VIS_PERIOD is 100, and TensorBoard, .* is not installed"):
        preflight(cfg)


def test_the_trainer_checks_before_it_builds(cfg, tmp_path, monkeypatch):
    class Built(Exception):
        pass

    def build_model(cfg):
        raise Built

    monkeypatch.setattr(Trainer, "build_model", staticmethod(build_model))
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        Trainer(cfg, resume=False)
    for resume in ({"resume": True}, {}):
        with pytest.raises(Built):
            Trainer(cfg, **resume)
    # In Detectron2's own way, where `resume_or_load` is the first to know.
    trainer = Trainer.__new__(Trainer)
    trainer.cfg = cfg
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        trainer.resume_or_load(resume=False)
