"""The command line, run in this process: it trains, resumes, evaluates and refuses bad input."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from d2_deformable.checkpoint import read_weights, write_weights
from d2_deformable.cli import train
from d2_deformable.cli.command import message_of
from d2_deformable.layers import DeformConv2d

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/quick"


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Make the arguments of train_net.py for four tiny images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))

    def arguments(*given, config="warped_shapes_rfcn_R_18_dconv3_dpool"):
        flags = [a for a in given if a.startswith("--")]
        overrides = [str(a) for a in given if a not in flags]
        small = {
            "OUTPUT_DIR": tmp_path / "output",
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 4,
            "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": 2,
        }
        pairs = [str(x) for pair in small.items() for x in pair]
        return ["--config-file", str(CONFIGS / f"{config}.yaml"), *flags, *pairs, *overrides]

    return arguments


@pytest.fixture
def run(arguments):
    """Run train_net.py's main and return its result."""

    def run(*given, **kwargs):
        return train_net.main(train_net.parse_args(arguments(*given, **kwargs)))

    return run


def lines(tmp_path):
    return [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]


def test_trains_resumes_and_evaluates(run, tmp_path):
    run()
    assert {"bbox/AP", "voc/AP50", "voc/AP70"} <= set(lines(tmp_path)[-1])
    log = (tmp_path / "output/log.txt").read_text()
    assert "VOC AP of warped_shapes_val (metric area)" in log and "Generating 4 images" in log
    assert "\x1b" not in log and "copypaste" in log
    assert re.search(r"iter: 1 .*max_mem: .*  offsets: still near zero in 5 of 5 layers", log)
    assert list((tmp_path / "output").glob("events.out.tfevents*"))
    first = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert first["iteration"] == 1

    run("--resume", "SOLVER.MAX_ITER", "3")
    resumed = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert resumed["iteration"] == 2

    results = run("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"))
    last = lines(tmp_path)[-1]
    assert results["voc"]["AP50"] == pytest.approx(last["voc/AP50"], nan_ok=True)


def test_ctrl_c_loses_nothing(run, tmp_path, monkeypatch, caplog):
    run_step, log = train.Trainer.run_step, tmp_path / "output/log.txt"

    def press(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        run_step(trainer)

    with monkeypatch.context() as pressed, pytest.raises(KeyboardInterrupt):
        pressed.setattr(train.Trainer, "run_step", press)
        run("--resume")
    assert f"--resume: no checkpoint in {tmp_path}/output, starting from ran" in log.read_text()
    assert "total_loss" in lines(tmp_path)[0] and "bbox/AP" not in lines(tmp_path)[-1]
    assert "saved in" in log.read_text() and "Traceback" not in log.read_text()
    run("--resume")
    assert f"Resuming from {tmp_path}/output/model_0000000.pth at iteration 1" in log.read_text()
    assert "bbox/AP" in lines(tmp_path)[-1]

    finished = lines(tmp_path)
    run("--resume")  # evaluates again, in place of the first time
    assert lines(tmp_path) == finished
    (tmp_path / "output/model_final.pth").unlink()
    run("--resume", "--eval-only")
    assert "last_checkpoint names 'model_final.pth', and there is no such" in log.read_text()
    for checkpoint in (tmp_path / "output").glob("model_*.pth"):
        checkpoint.unlink()
    for flags in ("--resume",), ("--resume", "--eval-only"):
        with pytest.raises(
            FileNotFoundError, match="model_final.pth: no such file, from .*last_ch"
        ):
            run(*flags)


@pytest.mark.parametrize(
    "config, kinds",
    [
        (
            "warped_shapes_rfcn_R_18_dconv3_dpool",
            {"detections", "sampling_points", "offset_lengths"},
        ),
        (
            "warped_shapes_deeplab_R_18_dconv3",
            {"segmentation", "sampling_points", "offset_lengths"},
        ),
    ],
)
def test_pictures_for_tensorboard(run, tmp_path, config, kinds):
    run("VIS_PERIOD", "2", "TEST.EVAL_PERIOD", "0", config=config)
    events = EventAccumulator(str(tmp_path / "output"), {"images": 0}).Reload()
    tags = {tag for tag in events.Tags()["images"] if tag.startswith("pictures/")}
    assert {tag.removeprefix("pictures/") for tag in tags} == kinds
    for tag in tags:
        (picture,) = events.Images(tag)
        assert picture.step == 1
        image = Image.open(io.BytesIO(picture.encoded_image_string))
        assert image.mode == "RGB" and len(image.getcolors(2**20)) > 100


def test_averaged_weights_are_evaluated_and_saved(run, tmp_path):
    run("MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.9", "TEST.EVAL_PERIOD", "1")
    first, last = (x for x in lines(tmp_path) if "bbox/AP" in x or "bbox_EMA/AP" in x)
    assert {"bbox/AP", "bbox_EMA/AP", "voc_EMA/AP50"} <= set(first) & set(last)
    assert (tmp_path / "output/inference_EMA").is_dir()
    file = str(tmp_path / "output/model_ema.pth")
    results = run("--eval-only", "MODEL.WEIGHTS", file)
    assert results["voc"]["AP50"] == pytest.approx(last["voc_EMA/AP50"], nan_ok=True)


def test_early_stopping_ends_a_run_as_finished(run, tmp_path, monkeypatch):
    results = {"bbox": {"AP": 0.5}}
    monkeypatch.setattr(train.Trainer, "test", staticmethod(lambda cfg, model: results))
    watch = ("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "9")
    assert run(*watch, "TEST.EARLY_STOP_PATIENCE", "1") == results
    output = tmp_path / "output"
    for name, iteration in ("best", 0), ("final", 1):
        file = torch.load(output / f"model_{name}.pth", weights_only=True)
        assert file["iteration"] == iteration
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert lines(tmp_path)[-1]["bbox/AP"] == 0.5
    log = (output / "log.txt").read_text()
    assert "Stopped after iteration 2: bbox/AP has not improved in 1 evaluations" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_stops_or_is_skipped(run, tmp_path, workers):
    run("SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    file = next(tmp_path.glob("datasets/warped_shapes/*train*/*.png"))
    file.write_bytes(file.read_bytes()[:200])
    settings = ("TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", "4")
    with pytest.raises(OSError) as error:
        run(*settings)
    assert message_of(error.value).startswith(f"{file}: this image cannot be read")
    run(*settings, "INPUT.SKIP_BROKEN_IMAGES", "True")
    log = (tmp_path / "output/log.txt").read_text()
    assert f"Skipping {file}, which cannot be read" in log
    times = int(re.search(rf"Skipped 1 broken images, (\d+) times in all: {file}\n", log)[1])
    assert [x["skipped_images"] for x in lines(tmp_path) if "skipped_images" in x] == [times]
    assert times > 0


def test_a_loss_that_is_not_finite_stops_clearly(run, tmp_path, monkeypatch):
    run_step = train.Trainer.run_step

    def poison(trainer):
        if trainer.iter == 1:
            trainer.model.proposal_generator.rpn_head.conv.weight.data[0] = float("nan")
        run_step(trainer)

    monkeypatch.setattr(train.Trainer, "run_step", poison)
    with pytest.raises(FloatingPointError) as error:
        run("SOLVER.CHECKPOINT_PERIOD", "1")
    message = r"Iteration 1: .*; the first module with such an output is proposal_generator.rpn_he"
    assert re.match(message, str(error.value))
    assert f"the last checkpoint is {tmp_path}/output/model_0000000.pth" in str(error.value)
    assert "bbox/AP" not in lines(tmp_path)[-1]


@pytest.mark.parametrize(
    "config", ["warped_shapes_rfcn_R_18_dconv3_dpool", "warped_shapes_deeplab_R_18_dconv3"]
)
def test_mixed_precision_on_the_cpu(run, tmp_path, monkeypatch, config):
    dtypes, enabled = set(), ("SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu")
    forward = DeformConv2d.forward

    def record(layer, x):
        output = forward(layer, x)
        dtypes.add((layer.training, output.dtype))
        return output

    monkeypatch.setattr(DeformConv2d, "forward", record)
    run(*enabled, config=config)
    # As on a GPU, Detectron2 evaluates in float32.
    assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}
    amp = lines(tmp_path)[0]["total_loss"]
    saved = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    assert not [k for k, v in saved.items() if v.dtype == torch.bfloat16 or not v.isfinite().all()]
    shutil.rmtree(tmp_path / "output")
    run("TEST.EVAL_PERIOD", "0", "MODEL.DEVICE", "cpu", config=config)
    assert amp != lines(tmp_path)[0]["total_loss"]
    assert amp == pytest.approx(lines(tmp_path)[0]["total_loss"], rel=0.05)


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
        (["TEST.VOC_METRIC", "11"], ValueError, "VOC_METRIC is 11 .int.; expected str"),
        (["SOLVER.LR_MULTIPLIERS", "[['offsets', 0.1]]"], ValueError, "'offsets' matches no"),
    ],
)
def test_refuses_with_one_message(run, overrides, error, message):
    with pytest.raises(error, match=message):
        run(*overrides)


def test_a_mistake_is_one_line_before_anything_else(arguments):
    mistake = arguments("MODEL.RESNETS.NORM", "FrozenBN")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *mistake], capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("train_net.py: MODEL.WEIGHTS is empty")
    assert "Environment info" not in done.stdout and "\x1b" not in done.stdout


def test_refuses_more_processes_than_gpus(arguments, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    args = train_net.parse_args(["--num-gpus", "2", *arguments()])
    with pytest.raises(ValueError, match="--num-gpus is 2, but 1 GPUs are visible"):
        train.main(args)


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
