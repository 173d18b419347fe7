"""Mean IoU against an independent computation, at every resolution."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_deformable import add_deformable_config
from d2_deformable.evaluation import SemSegEvaluator, build_evaluators

CLASSES = ("sky", "sea", "land", "never")
K = len(CLASSES)


@pytest.fixture
def mask_set(tmp_path):
    """Register masks ((H, W) uint8 arrays, written as palette PNGs); remove them afterwards."""

    def mask_set(masks, classes=CLASSES, ignore=255):
        records = []
        for i, mask in enumerate(masks):
            file = tmp_path / f"{i}.png"
            image = Image.fromarray(mask)
            image.putpalette(list(range(255, 255 - 3 * 80, -1)))
            image.save(file)
            size = {"height": mask.shape[0], "width": mask.shape[1]}
            records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(file), **size})
        DatasetCatalog.register("segmented_set", lambda: records)
        MetadataCatalog.get("segmented_set").set(
            stuff_classes=list(classes), ignore_label=ignore, evaluator_type="sem_seg"
        )
        return "segmented_set"

    yield mask_set
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "segmented_set" in catalog:
            catalog.remove("segmented_set")


def logits(labels):
    """Logits (K, H, W) whose best class is `labels`."""
    one_hot = np.eye(K, dtype=np.float32)[labels].transpose(2, 0, 1)
    return torch.from_numpy(one_hot.copy()) * 3 - 1


def run(evaluator, predictions):
    evaluator.reset()
    for i, labels in predictions.items():
        evaluator.process([{"file_name": f"{i}.jpg"}], [{"sem_seg": logits(labels)}])
    return evaluator


def mean_iou(truths, predictions):
    """Compute mean IoU from its definition, pixel by pixel and class by class."""
    ious = {}
    for c in range(K):
        both = either = 0
        for truth, pred in zip(truths, predictions):
            for t, p in zip(truth.ravel().tolist(), pred.ravel().tolist()):
                if t != 255:
                    both += t == c and p == c
                    either += t == c or p == c
        ious[c] = 100 * both / either if either else float("nan")
    return ious, np.nanmean(list(ious.values()))


@pytest.fixture
def random_masks():
    rng = np.random.default_rng(0)
    # Class 3 never occurs. Class 2 is predicted in both images, but true only in the second.
    truths = [rng.choice([0, 1, 255], (11, 13)), rng.choice([0, 1, 2, 255], (9, 8))]
    predictions = [rng.integers(0, 3, truth.shape) for truth in truths]
    return [truth.astype(np.uint8) for truth in truths], predictions


def test_equals_an_independent_computation(mask_set, random_masks, tmp_path):
    truths, predictions = random_masks
    evaluator = SemSegEvaluator(mask_set(truths), str(tmp_path / "out"))
    results = run(evaluator, dict(enumerate(predictions))).evaluate()["sem_seg"]
    ious, mean = mean_iou(truths, predictions)
    assert results["mIoU"] == pytest.approx(mean)
    for c, name in enumerate(CLASSES):
        assert results[f"IoU-{name}"] == pytest.approx(ious[c], nan_ok=True)
    assert np.isnan(results["IoU-never"])
    for c, name in enumerate(CLASSES[:3]):
        of_class = np.concatenate([p[t == c] for t, p in zip(truths, predictions)])
        assert results[f"ACC-{name}"] == pytest.approx(100 * (of_class == c).mean())
    right = sum((t == p).sum() for t, p in zip(truths, predictions))
    assert results["pACC"] == pytest.approx(100 * right / sum((t < 255).sum() for t in truths))
    assert (tmp_path / "out/sem_seg_evaluation.pth").is_file()


def test_a_class_that_is_only_predicted_counts_as_zero(mask_set):
    truth, predicted = np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]])
    results = run(SemSegEvaluator(mask_set([truth])), {0: predicted}).evaluate()["sem_seg"]
    assert (results["IoU-sky"], results["IoU-sea"], results["mIoU"]) == (75, 0, 37.5)


def test_another_ignored_value(mask_set):
    truth = np.array([[0, 7], [7, 1]], np.uint8)
    results = run(SemSegEvaluator(mask_set([truth], ignore=7)), {0: np.array([[0, 1], [0, 1]])})
    assert results.evaluate()["sem_seg"]["mIoU"] == 100


def test_two_processes_give_what_one_gives(mask_set, random_masks, monkeypatch):
    truths, predictions = random_masks
    name = mask_set(truths)
    expected = run(SemSegEvaluator(name), dict(enumerate(predictions))).evaluate()
    shards = [run(SemSegEvaluator(name), {i: predictions[i]}) for i in (0, 1)]

    def all_gather(mine):
        if isinstance(mine, np.ndarray):
            return [shard._conf_matrix for shard in shards]
        return [shard._predictions for shard in shards]

    theirs = "detectron2.evaluation.sem_seg_evaluation"
    monkeypatch.setattr(f"{theirs}.all_gather", all_gather)
    np.testing.assert_equal(shards[0].evaluate(), expected)
    monkeypatch.setattr(f"{theirs}.is_main_process", lambda: False)
    assert shards[1].evaluate() is None


def opencv_nearest(labels, height, width):
    y = np.floor(np.arange(height) * labels.shape[0] / height).astype(int)
    x = np.floor(np.arange(width) * labels.shape[1] / width).astype(int)
    return labels[y][:, x]


@pytest.mark.parametrize("size", [(7, 9), (20, 31)])
def test_released_resolutions(mask_set, random_masks, size):
    """The ground truth (VOC) or the prediction (Cityscapes) is resized to the other's size."""
    truth = random_masks[0][0]
    predicted = np.random.default_rng(1).integers(0, 3, size)
    name = mask_set([truth])
    for resolution, shape in (("resized_ground_truth", size), ("resized_prediction", truth.shape)):
        evaluator = SemSegEvaluator(name, resolution=resolution)
        results = run(evaluator, {0: predicted}).evaluate()["sem_seg"]
        _, expected = mean_iou([opencv_nearest(truth, *shape)], [opencv_nearest(predicted, *shape)])
        assert results["mIoU"] == pytest.approx(expected)
    message = r"0.png: is \(11, 13\), but its prediction is \(\d+, \d+\)"
    with pytest.raises(ValueError, match=message):
        run(SemSegEvaluator(name), {0: predicted})


@pytest.mark.parametrize("evaluator_type", ["sem_seg", "cityscapes_sem_seg"])
def test_built_from_the_config(mask_set, evaluator_type, tmp_path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.TEST.SEM_SEG_RESOLUTION = "resized_prediction"
    name = mask_set([np.zeros((4, 4), np.uint8)])
    MetadataCatalog.get(name).__dict__["evaluator_type"] = evaluator_type
    evaluators = build_evaluators(cfg, name)
    results = run(evaluators, {0: np.zeros((2, 2), int)}).evaluate()
    assert results["sem_seg"]["mIoU"] == 100
    assert (tmp_path / "output/inference/sem_seg_predictions.json").is_file()
