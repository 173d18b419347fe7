"""The command line, run in this process: it trains, resumes, evaluates and refuses bad input."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import train_net
from d2_deformable.checkpoint import read_weights, write_weights

CONFIGS = Path(__file__).parents[1] / "configs/quick"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run train_net.py's main on four tiny images and return its result."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))

    def run(*arguments, config="warped_shapes_rfcn_R_18_dconv3_dpool"):
        flags = [a for a in arguments if a.startswith("--")]
        overrides = [str(a) for a in arguments if a not in flags]
        small = {
            "OUTPUT_DIR": tmp_path / "output",
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 4,
            "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": 2,
        }
        pairs = [str(x) for pair in small.items() for x in pair]
        file = ["--config-file", str(CONFIGS / f"{config}.yaml")]
        return train_net.main(train_net.parse_args([*file, *flags, *pairs, *overrides]))

    return run


def lines(tmp_path):
    return [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]


def test_trains_resumes_and_evaluates(run, tmp_path):
    run()
    assert {"bbox/AP", "voc/AP50", "voc/AP70"} <= set(lines(tmp_path)[-1])
    log = (tmp_path / "output/log.txt").read_text()
    assert "VOC AP of warped_shapes_val (metric area)" in log and "Generating 4 images" in log
    assert list((tmp_path / "output").glob("events.out.tfevents*"))
    first = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert first["iteration"] == 1

    run("--resume", "SOLVER.MAX_ITER", "3")
    resumed = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert resumed["iteration"] == 2

    results = run("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"))
    last = lines(tmp_path)[-1]
    assert results["voc"]["AP50"] == pytest.approx(last["voc/AP50"], nan_ok=True)


class Hostile:
    """A pickle that touches a file."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return self.sign.touch, ()


@pytest.mark.parametrize("way", ["--eval-only", "train", "--resume"])
def test_weights_are_read_safely(run, tmp_path, way):
    flags, sign = [way] if way.startswith("-") else [], tmp_path / "sign"
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps({"model": {}, "__author__": Hostile(sign)}))
    with pytest.raises(ValueError, match="model.pkl is not a weights file that can be read safely"):
        run("MODEL.WEIGHTS", str(file), *flags)
    assert not sign.exists()


def test_training_starts_from_safetensors(run, tmp_path):
    run("SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    weights = read_weights(tmp_path / "output/model_final.pth")
    write_weights(weights, tmp_path / "first.safetensors")
    shutil.rmtree(tmp_path / "output")
    still = ("SOLVER.BASE_LR", "0.0", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    run("MODEL.WEIGHTS", str(tmp_path / "first.safetensors"), *still)
    after = read_weights(tmp_path / "output/model_final.pth")
    name = "roi_heads.box_predictor.cls_score.score_maps.weight"
    assert torch.equal(after[name], weights[name]) and weights[name].any()


def test_segments(run, tmp_path):
    run(config="warped_shapes_deeplab_R_18_dconv3")
    last = lines(tmp_path)[-1]
    assert 0 <= last["sem_seg/mIoU"] <= 100 and "sem_seg/IoU-background" in last
    model = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]
    results = run("--eval-only", *model, config="warped_shapes_deeplab_R_18_dconv3")
    assert results["sem_seg"]["mIoU"] == pytest.approx(last["sem_seg/mIoU"])


def test_the_same_seed_gives_the_same_weights(run, tmp_path):
    weights = []
    for _ in range(2):
        # On a GPU gradients are summed in any order.
        run("SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu")
        weights.append(torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"])
        shutil.rmtree(tmp_path / "output")
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        (["MODEL.RESNETS.NORM", "FrozenBN"], ValueError, "NORM FrozenBN freezes would stay random"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], ValueError, "NUM_CLASSES is 80, but .* 8 classes"),
        (["MODEL.RESNETS.DEFROM_NUM_LAYERS", "3"], ValueError, "mean MODEL.RESNETS.DEFORM_NUM_LA"),
        (["TEST.VOC_METRIC", "11"], ValueError, "VOC_METRIC. Quote a string that looks like a n"),
        (["SOLVER.LR_MULTIPLIERS", "[['offsets', 0.1]]"], ValueError, "'offsets' matches no"),
    ],
)
def test_refuses_with_one_message(run, overrides, error, message):
    with pytest.raises(error, match=message):
        run(*overrides)


def test_refuses_to_evaluate_random_weights(run):
    with pytest.raises(ValueError, match="Evaluation would use random weights"):
        run("--eval-only")


def test_refuses_to_evaluate_what_it_cannot_load_or_use(run, tmp_path):
    file = str(tmp_path / "other.pth")
    run("SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    weights = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    name = "roi_heads.box_predictor.cls_score.score_maps.bias"
    weights[name] = weights[name][:-49]  # one class fewer
    torch.save({"model": weights}, file)
    with pytest.raises(ValueError, match=f"other.pth is .*another number of classes: .*{name}"):
        run("--eval-only", "MODEL.WEIGHTS", file)
    with pytest.raises(ValueError, match="VOC_METRIC is '12'"):
        run("--eval-only", "MODEL.WEIGHTS", file, "TEST.VOC_METRIC", "'12'")


def test_several_scales_and_box_average(run, tmp_path):
    final = str(tmp_path / "output/model_final.pth")
    average = ("TEST.BOX_AVERAGE.ENABLED", "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.12")
    run("SOLVER.MAX_ITER", "1", *average)
    assert {"voc/AP50", "voc_TTA/AP50", "bbox_TTA/AP"} <= set(lines(tmp_path)[-1])
    sizes = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(128,160)")
    results = run("--eval-only", "MODEL.WEIGHTS", final, *average, *sizes)
    assert {"bbox", "voc", "bbox_TTA", "voc_TTA"} == set(results)


def test_overrides_reach_fields_that_the_yaml_leaves_out(run, tmp_path):
    run("DATASETS.CUSTOM.warped_shapes_train.ROOT", str(tmp_path / "elsewhere"))
    assert any((tmp_path / "elsewhere").iterdir())
