"""The predictor: its results, options, and what it refuses."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import d2_deformable
from d2_deformable import model_zoo
from d2_deformable.config import read_config
from d2_deformable.inference import DEFAULT_MODEL, Predictor
from yamls import CONFIGS

DEEPLAB = CONFIGS / "quick/warped_shapes_deeplab_R_18_dconv3.yaml"
TINY = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]


def test_results_equal_those_of_detectron2s_predictor(predictor, pictures):
    cfg = model_zoo.get_config(DEFAULT_MODEL, trained=True)
    cfg.MODEL.DEVICE = "cpu"
    expected = DefaultPredictor(cfg)(pictures[0][:, :, ::-1])["instances"]
    expected = expected[expected.scores >= 0.5]
    (found,) = predictor([pictures[0]], ["a.png"])
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.classes == expected.pred_classes.tolist()
    assert found.names == [predictor.class_names[i] for i in found.classes]
    assert (found.file, found.width, found.height) == ("a.png", 160, 160)
    assert json.loads(json.dumps(asdict(found))) == asdict(found)  # plain Python


def test_a_batch_gives_what_single_images_give(predictor, pictures):
    wide = np.concatenate(pictures, axis=1)  # another size than the first
    batch = predictor([pictures[0], wide])
    for image, found in zip((pictures[0], wide), batch):
        (alone,) = predictor([image])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.5)
        assert found.names == alone.names


def test_threshold_and_classes(pictures):
    every = Predictor(threshold=0.01, device="cpu")
    (found,) = every([pictures[0]])
    name = found.names[-1]
    only = Predictor(threshold=0.01, only=[name], device="cpu")
    (some,) = only([pictures[0]])
    assert min(found.scores) < 0.5 and found.scores == sorted(found.scores, reverse=True)
    assert some.scores == [s for s, n in zip(found.scores, found.names) if n == name]


AUG = ["TEST.AUG.ENABLED", True, "TEST.AUG.MAX_SIZE", 400, "TEST.AUG.MIN_SIZES"]


def test_one_scale_of_augmentation_gives_the_plain_result(predictor, pictures):
    overrides = [*AUG, (160,), "TEST.AUG.FLIP", False]
    (found,) = Predictor(overrides=overrides, device="cpu")([pictures[0]])
    (plain,) = predictor([pictures[0]])
    assert len(found) and found.names == plain.names
    np.testing.assert_allclose(found.boxes, plain.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-4)


@pytest.mark.parametrize("more", [[], ["TEST.BOX_AVERAGE.ENABLED", True]])
def test_augmentation_of_rfcn(predictor, pictures, more):
    wide = np.concatenate(pictures, axis=1)
    augmented = Predictor(overrides=[*AUG, (160, 176), *more], device="cpu")
    for image, found in zip((pictures[0], wide), augmented([pictures[0], wide])):
        (plain,) = predictor([image])
        assert found.boxes != plain.boxes
        height, width = image.shape[:2]
        assert (found.height, found.width) == (height, width)
        boxes = np.array(found.boxes)
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        # Boxes are mapped back from every scale and from the mirrored image.
        best = found.boxes[found.names.index(plain.names[0])]
        np.testing.assert_allclose(best, plain.boxes[0], atol=8)


def test_augmentation_of_faster_rcnn(pictures, tmp_path):
    yaml = CONFIGS / "quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool.yaml"
    tiny = [*TINY, "MODEL.RESNETS.REDUCED_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16]
    cfg = read_config(yaml, [*tiny, "MODEL.DEVICE", "cpu"])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "w.pth")
    given = {"weights": tmp_path / "w.pth", "threshold": 0, "device": "cpu"}
    augmented = Predictor(yaml, overrides=[*tiny, *AUG, (96, 128)], **given)
    (found,) = augmented([pictures[0]])
    assert len(found) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert found.scores != Predictor(yaml, overrides=tiny, **given)([pictures[0]])[0].scores


def test_predict_reads_files(photos, predictor, pictures):
    found = list(d2_deformable.predict(sorted(photos.rglob("*.png")), batch=2, device="cpu"))
    assert [one.file for one in found] == [str(photos / "a.png"), str(photos / "sub/b.png")]
    assert found[0].names == predictor([pictures[0]])[0].names
    with pytest.raises(OSError, match=r"broken.jpg: this image cannot be read: not an image"):
        list(d2_deformable.predict(photos / "broken.jpg", device="cpu"))


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory):
    """A YAML's network with random weights, as the OUTPUT_DIR of a training would have it."""
    folder = tmp_path_factory.mktemp("output")
    cfg = read_config(DEEPLAB, [*TINY, "MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg)
    DetectionCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.mark.parametrize("given", ["folder", "yaml"])
def test_segmentation(deeplab, pictures, given):
    if given == "folder":
        predictor = Predictor(deeplab)
    else:
        weights = deeplab / "model_final.pth"
        predictor = Predictor(DEEPLAB, weights, device="cpu", overrides=TINY)
    (found,) = predictor([pictures[0]])
    assert found.labels.shape == (160, 160) and found.labels.dtype == np.uint8
    assert found.labels.max() < len(predictor.class_names) and len(found) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, "threshold is 1.5; expected a score between 0 and 1"),
        ({"only": ["dog"]}, ValueError, "no class is called dog; the network knows disc, "),
        ({"model": DEEPLAB}, ValueError, "is a config: give its weights too .--weights"),
        ({"model": "no_such"}, model_zoo.NotInModelZooError, "no_such"),
        ({"weights": "missing.pth"}, FileNotFoundError, "missing.pth"),
        ({"overrides": [*AUG, ()]}, ValueError, "TEST.AUG.MIN_SIZES is"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Predictor(**arguments)
