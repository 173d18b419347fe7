"""d2-deformable train imagenet on a tiny ImageFolder, and its weights in a detector."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from d2_deformable import add_deformable_config
from d2_deformable.cli.main import main
from d2_deformable.cli.train_imagenet import classifier_cfg
from d2_deformable.engine.imagenet import (
    Classifier,
    evaluate,
    image_folders,
    learning_rate,
    train,
)

ROOT = Path(__file__).parents[2]
NAME = ("train", "imagenet")
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
COLORS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (230, 30, 30)}


def write_images(folder, number):
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = np.random.default_rng(i).normal(color, 80, (36, 40 + i, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture
def data(tmp_path):
    """Three classes, each noise around one colour, with 4 training and 3 test images per class."""
    write_images(tmp_path / "data/train", 4)
    write_images(tmp_path / "data/val", 3)
    return tmp_path / "data"


@pytest.fixture
def arguments(data, tmp_path):
    """A run of a few seconds: an Aligned-Inception-ResNet with few channels on 32 x 32 crops."""
    small = ["--arch", "AIR_26", "--size", "32", "--batch-size", "6", "--num-workers", "0"]
    return [str(data), "--output", str(tmp_path / "run"), "--epochs", "2", *small, *SMALL]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


# ---- Training ------------------------------------------------------------------------------------


def test_learns_colours_and_prints_how_to_use_the_weights(arguments, data, tmp_path, capsys):
    shutil.rmtree(data / "train")
    write_images(data / "train", 40)
    narrow = ["--arch", "R_18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
    main(
        [
            "train",
            "imagenet",
            *arguments,
            "--epochs",
            "3",
            "--batch-size",
            "12",
            "--lr",
            "0.01",
            *narrow,
        ]
    )
    metrics = lines(tmp_path / "run")
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert [line["lr"] for line in metrics] == pytest.approx([0.01, 0.001, 0.0001])
    assert metrics[-1]["loss"] < 0.6 * metrics[0]["loss"]
    assert metrics[-1]["top1"] > 80 and metrics[-1]["top5"] == 100
    printed = capsys.readouterr().out
    assert json.dumps(metrics[-1]) in printed
    assert f"MODEL.WEIGHTS {tmp_path / 'run/backbone.pth'}" in printed
    assert "MODEL.RESNETS.RES2_OUT_CHANNELS 8" in printed
    assert "MODEL.PIXEL_MEAN [103.53, 116.28, 123.675]" in printed


def test_an_interrupted_run_continues_with_the_same_numbers(data, tmp_path):
    folders = image_folders(data, 32)

    class Interruption(Exception):
        pass

    def run(output, interrupt_at=None):
        torch.manual_seed(0)
        model = Classifier(classifier_cfg("AIR_26", SMALL), 3)
        steps = []

        def interrupt(*_):
            steps.append(1)
            if len(steps) == interrupt_at:
                raise Interruption

        model.linear.register_forward_hook(interrupt)
        train(model, folders, output, epochs=3, batch_size=6, num_workers=0)
        return model.state_dict()

    expected = run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "broken", interrupt_at=6)
    assert len(lines(tmp_path / "broken")) == 1
    actual = run(tmp_path / "broken")
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


class Draws(torch.utils.data.Dataset):
    """Images that record the order of access and the random numbers that crops would draw."""

    def __init__(self):
        self.order, self.numbers = [], []

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.order.append(i)
        self.numbers.append(torch.rand(()).item())
        return torch.zeros(3, 2, 2), i % 3


def test_every_epoch_has_its_own_order_and_crops(tmp_path):
    data = Draws()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    train(model, (data, Draws()), tmp_path, epochs=2, batch_size=6, num_workers=0)
    assert sorted(data.order[:12]) == sorted(data.order[12:]) == list(range(12))
    assert data.order[:12] != data.order[12:]
    assert len(set(data.numbers)) == 24


def test_top_1_and_top_5():
    """Scores decrease with the class, so the best is class 0 and the best five are 0 to 4."""
    model = nn.Linear(7, 7)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    scores = -torch.arange(7.0).expand(4, 7)
    loader = [(scores, torch.tensor([0, 0, 4, 5])), (scores[:1], torch.tensor([6]))]
    assert evaluate(model, loader) == (40, 60)


def test_schedule():
    rates = [learning_rate(0.1, epoch, 90) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_two_processes_train_one_network_and_test_every_image(arguments, tmp_path):
    """The 9 images of val are not divisible by two, and each is counted once."""
    command = [*NAME, *arguments, "--epochs", "1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*torchrun, "--nproc_per_node", "2", "-m", "d2_deformable", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 2/2" in result.stdout, "12 images in batches of 6, three of them on each process"
    (metrics,) = lines(tmp_path / "run")
    hits = metrics["top1"] / 100 * 9
    assert hits == pytest.approx(round(hits)) and metrics["top5"] == 100
    assert (tmp_path / "run/backbone.pth").is_file()


# ---- The weights in a detector -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rfcn_AIR", "faster_rcnn_AIR_dconv3_dpool"])
def test_every_weight_loads_into_a_detector(arguments, tmp_path, name, caplog):
    main([*NAME, *arguments, "--epochs", "1"])
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(str(ROOT / f"configs/COCO-Detection/{name}.yaml"))
    cfg.merge_from_list([*SMALL, "MODEL.RESNETS.DEPTH", 26, "MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.WEIGHTS.startswith("output/imagenet_AIR_101/")
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "run/backbone.pth"))
    assert "not used" not in caplog.text and "shape" not in caplog.text

    trained = torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["model"]
    state = model.backbone.state_dict()
    new = {key for key in state if key.startswith("reduction") or ".conv_offset." in key}
    assert set(state) - new == {
        key.removeprefix("backbone.")
        for key in trained
        if key.startswith("backbone.") and "num_batches" not in key
    }
    for key in set(state) - new:
        assert torch.equal(state[key], trained[f"backbone.{key}"]), key

    # Equal pixels give the same features as in the classifier.
    norms = [m for m in model.backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 45 and all(m.running_var.ne(1).any() for m in norms)
    classifier = Classifier(classifier_cfg("AIR_26", SMALL), 3).eval()
    classifier.load_state_dict(trained)
    image = torch.randint(0, 256, (3, 64, 64)).float()
    expected = {}
    classifier.backbone.res4.register_forward_hook(lambda *args: expected.update(res4=args[2]))
    with torch.no_grad():
        classifier(image[None])
        normalised = model.preprocess_image([{"image": image.flip(0)}]).tensor
        torch.testing.assert_close(model.backbone.eval()(normalised)["res4"], expected["res4"])


# ---- Bad input -----------------------------------------------------------------------------------


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


BAD_FOLDERS = {
    "no val": (lambda data: shutil.rmtree(data / "val"), r"No such file .*expected train/<class>"),
    "no classes": (
        lambda data: [shutil.rmtree(d) for d in (data / "train").iterdir()],
        r"/train: Couldn't find any class folder .*expected train/<class>/<image> and val/",
    ),
    "no images": (lambda data: empty(data / "train/red"), r"no valid file for the classes red"),
    "other classes": (
        lambda data: (data / "val/red").rename(data / "val/rose"),
        r"2 classes are not in both train and val, the first is red",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_of_another_layout(arguments, data, case):
    spoil, message = BAD_FOLDERS[case]
    spoil(data)
    with pytest.raises(SystemExit, match="^d2-deformable train imagenet: ") as error:
        main([*NAME, *arguments])
    assert re.search(message, str(error.value))


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--epochs", "0"], "0 epochs: choose at least 1"),
        (["--batch-size", "13"], "a batch of 13 from 12 images in 1 processes: choose"),
        (["--lr", "1e30"], "epoch 1/2: the loss is .* lower lr"),
        (["MODEL.RESNETS.DEPTH", "7"], "DEPTH is 7; choose one of"),
        (["MODEL.RESNETS.FOO", "3"], "there is no key MODEL.RESNETS.FOO"),
    ],
)
def test_settings_that_cannot_train(arguments, changes, message):
    with pytest.raises(SystemExit, match=f"^d2-deformable train imagenet: .*{message}"):
        main([*NAME, *arguments, *changes])


def test_a_checkpoint_of_another_network(arguments):
    main([*NAME, *arguments, "--epochs", "1"])
    with pytest.raises(SystemExit, match="checkpoint.pth is from another network or number of cla"):
        main([*NAME, *arguments, "--arch", "AIR_50"])


@pytest.mark.parametrize("arch, parameters", [("AIR_101", 64_381_800), ("R_50", 25_557_032)])
def test_networks_of_imagenet(arch, parameters):
    """ResNet-50 has the parameters of torchvision's."""
    with torch.device("meta"):
        model = Classifier(classifier_cfg(arch), 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters
