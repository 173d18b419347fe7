"""A resumed training equals an uninterrupted one, and refuses to go on with another config."""

import itertools
import json
import logging
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from d2_deformable.config import read_config
from d2_deformable.data import register_custom_datasets
from d2_deformable.engine import Trainer
from d2_deformable.engine.resume import check_same_config, cut_metrics
from yamls import CONFIGS

NETWORK = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
STEPS, SAVED = 4, "model_0000001.pth"
QUICK = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "DATALOADER.NUM_WORKERS", "0"]
QUICK += ["SOLVER.MAX_ITER", str(STEPS), "SOLVER.STEPS", "(3,)", "SOLVER.CHECKPOINT_PERIOD", "2"]
QUICK += ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48, 64, 80)"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    fields = {"FORMAT": "warped_shapes", "SPLIT": "train", "NUM_IMAGES": 6, "IMAGE_SIZE": 64}

    def make(folder, *options, network=NETWORK):
        cfg = read_config(network, [*QUICK, *options])
        cfg.OUTPUT_DIR = str(root / folder)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        cfg.DATASETS.CUSTOM["resume"] = type(cfg)(fields | {"ROOT": str(root / "data")})
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("resume",), ()
        register_custom_datasets(cfg)
        return cfg

    yield make
    DatasetCatalog.remove("resume")


def train(cfg, resume=False, **options):
    (trainer := Trainer(cfg)).resume_or_load(resume, **options)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(config):
    """A finished training, and its config."""
    cfg = config("whole", "SEED", "-1")
    train(cfg)
    return cfg


@pytest.fixture
def interrupted(run, tmp_path):
    """The folder of the same training as it was after two steps."""
    folder = tmp_path / "interrupted"
    folder.mkdir()
    shutil.copy(f"{run.OUTPUT_DIR}/{SAVED}", folder)
    (folder / "last_checkpoint").write_text(SAVED)
    return folder


def content(folder):
    return torch.load(f"{folder}/model_final.pth", weights_only=True)


def leaves(value, name=""):
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{name}.{key}").items()}
    return {name: value}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_training_equals_an_uninterrupted_one(run, config, interrupted, workers):
    """Weights and momentum bit for bit, whichever processes load the images."""
    # A new process would have other random numbers than the interrupted one had.
    torch.manual_seed(int(workers))
    train(config(interrupted, "SEED", "-1", "DATALOADER.NUM_WORKERS", workers), resume=True)
    one, other = leaves(content(run.OUTPUT_DIR)), leaves(content(interrupted))
    for each in (one, other):
        for name in [n for n in each if n.startswith((".trainer.config", ".trainer.scalars"))]:
            del each[name]
    assert one.keys() == other.keys()
    assert any("momentum_buffer" in name for name in one)
    for name, value in one.items():
        same = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        assert same, name


def test_a_running_average_outside_of_the_weights_is_resumed(tmp_path, config):
    """RetinaNet's loss normaliser."""
    options = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"]
    options += ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CLASSES", "8", "SEED", "1"]
    options += ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.WEIGHTS", ""]
    retinanet = CONFIGS / "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    whole = config(tmp_path / "whole", *options, network=retinanet)
    train(whole)
    (folder := tmp_path / "resumed").mkdir()
    shutil.copy(f"{whole.OUTPUT_DIR}/{SAVED}", folder)
    trainer = train(config(folder, *options, network=retinanet), resume=True)
    assert trainer.model.loss_normalizer != 100
    one, other = content(whole.OUTPUT_DIR)["model"], content(folder)["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lines_of_a_start_that_saved_nothing_are_written_again(config, tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 3.0}\n')
    trainer = train(config(tmp_path, "SEED", "-1"), resume=True)
    assert trainer.start_iter == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [STEPS - 1]


def test_a_training_that_starts_anew_says_what_it_overwrites(config, interrupted, caplog):
    trainer = Trainer(config(interrupted, "SEED", "-1"))
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load(resume=False)
    assert f"the checkpoint {SAVED} of an earlier training" in caplog.text
    assert trainer.start_iter == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_damaged_last_checkpoint_alone_starts_anew(config, tmp_path, resume, content):
    (tmp_path / "last_checkpoint").write_bytes(content)
    trainer = Trainer(config(tmp_path, "SEED", "-1"))
    trainer.resume_or_load(resume)
    assert trainer.start_iter == 0


def test_weights_alone_are_not_resumed(config, interrupted):
    torch.save(
        {"model": torch.load(interrupted / SAVED, weights_only=True)["model"]}, interrupted / SAVED
    )
    trainer = Trainer(config(interrupted, "SEED", "-1"))
    with pytest.raises(ValueError, match=f"{SAVED}: holds weights but not"):
        trainer.resume_or_load()


def test_what_is_random_follows_from_the_seed(config):
    """A test of the test above: another order or augmentation gives other weights."""
    weights = []
    for i, seed in enumerate(("1", "1", "2")):
        torch.manual_seed(0)  # the same initial weights
        trainer = train(config(f"seed{i}", "SEED", seed, "SOLVER.MAX_ITER", "1"))
        weights.append(trainer.model.state_dict()["backbone.res2.0.conv1.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["SOLVER.BASE_LR", "0.5"],
            r"with SOLVER.BASE_LR \S+, now 0.5. Resume with the same config",
        ),
        (
            ["MODEL.RESNETS.DEPTH", "34", "SOLVER.GAMMA", "0.5"],
            "DEPTH 18, now 34; SOLVER.GAMMA 0.1",
        ),
    ],
)
def test_another_config_stops(config, interrupted, options, message):
    trainer = Trainer(config(interrupted, "SEED", "-1", *options))
    with pytest.raises(ValueError, match=f"{SAVED} was trained .*{message}"):
        trainer.resume_or_load()


def test_another_config_goes_on_if_it_may(run, config, interrupted, caplog):
    """The schedule is the new config's, the base learning rate the checkpoint's."""
    changed = ["SOLVER.GAMMA", "0.5", "SOLVER.BASE_LR", "7.0", "SOLVER.WARMUP_ITERS", "0"]
    trainer = Trainer(config(interrupted, "SEED", "-1", *changed))
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load(allow_changes=True)
    assert trainer.start_iter == 2
    assert re.search("SOLVER.GAMMA 0.1, now 0.5.* The optimizer's settings", caplog.text)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(run.SOLVER.BASE_LR * 0.5)


def test_keys_that_change_nothing_learned_may_differ(config):
    old = config("old").dump()
    changed = ["SOLVER.MAX_ITER", "9", "TEST.EVAL_PERIOD", "3", "INPUT.MIN_SIZE_TEST", "32"]
    cfg = config("new", *changed, "DATALOADER.NUM_WORKERS", "1")
    cfg.DATASETS.CUSTOM["other"] = cfg.DATASETS.CUSTOM.resume.clone()
    check_same_config("file", old, cfg)
    cfg.DATASETS.CUSTOM.resume.NUM_IMAGES = 7
    del cfg.DATASETS.CUSTOM.resume["IMAGE_SIZE"]
    cfg.DATASETS.CUSTOM.resume["PART"] = "train"
    message = "IMAGE_SIZE 64, now unset; .*NUM_IMAGES 6, now 7; .*PART unset, now train"
    with pytest.raises(ValueError, match=message):
        check_same_config("file", old, cfg)


def test_a_schedule_that_follows_max_iter_may_not_change_it(config):
    cosine = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]
    old = config("old", *cosine).dump()
    with pytest.raises(ValueError, match=f"SOLVER.MAX_ITER {STEPS}, now 9"):
        check_same_config("file", old, config("new", *cosine, "SOLVER.MAX_ITER", "9"))


def test_a_checkpoint_without_optimizer_says_so(config, interrupted, caplog):
    """Detectron2 0.5 writes such checkpoints."""
    file = interrupted / SAVED
    old = torch.load(file, weights_only=True)
    old["trainer"] = {name: old["trainer"][name] for name in ("iteration", "hooks")}
    torch.save(old, file)
    trainer = Trainer(config(interrupted, "SEED", "-1"))
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load()
    assert trainer.start_iter == 2
    assert "no state of the optimizer: momentum starts at zero" in caplog.text


@pytest.mark.parametrize("expected, stops", [(100.0, True), (0.0, False)])
def test_expected_results_of_a_finished_training(run, config, expected, stops):
    cfg = config(run.OUTPUT_DIR, "SEED", "-1", "INPUT.MIN_SIZE_TEST", "64")
    cfg.DATASETS.TEST = ("resume",)
    cfg.TEST.EXPECTED_RESULTS = [["voc", "AP", expected, 50.0]]
    (trainer := Trainer(cfg)).resume_or_load()
    with pytest.raises(SystemExit) if stops else nullcontext():
        assert "voc" in trainer.train()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in itertools.pairwise("abcdefgh")
)


def _set(path, value):
    def damage(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value(content[last]) if callable(value) else value

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (_set(["trainer"], 5), "holds weights but not"),
        (_set(["trainer", "iteration"], "2"), "trainer.iteration is a str; expected a Real"),
        (_set(["trainer", "iteration"], 10**5000), "trainer.iteration is no number"),
        (_set(["trainer", "iteration"], torch.ones(3)), "trainer.iteration is a Tensor"),
        (_set(["trainer", "hooks"], []), "trainer.hooks is a list; expected a dict"),
        (_set(["trainer", "hooks", "LRScheduler"], 3), "LRScheduler is a int; expected a dict"),
        (_set(["trainer", "hooks", "LRScheduler", "last_epoch"], "x"), "last_epoch is a str"),
        (_set(["trainer", "seed"], None), "trainer.seed is a NoneType"),
        (_set(["trainer", "config"], 5), "config that it was trained with is damaged"),
        (_set(["trainer", "config"], BOMB), "config .* is damaged: the config has .* values"),
        (_set(["trainer", "config"], "[" * 3000), "config that .* is damaged"),
        (_set(["trainer", "scalars"], {"lr": {"values": [], "smooth": True}}), "scalars lr are no"),
        (_set(["trainer", "_trainer"], {}), "is damaged: 'iteration'"),
        (_set(["trainer", "_trainer", "optimizer", "param_groups"], []), "is damaged"),
        (_set(["trainer", "_trainer", "optimizer", "param_groups", 0, "lr"], "x"), "lr is a str"),
        (
            _set(
                ["trainer", "_trainer", "optimizer", "state", 0, "momentum_buffer"], torch.ones(2)
            ),
            r"momentum_buffer of shape \(2,\) for a parameter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_state_is_one_sentence(config, interrupted, damage, message):
    content = torch.load(interrupted / SAVED, weights_only=True)
    damage(content)
    torch.save(content, interrupted / SAVED)
    trainer = Trainer(config(interrupted, "SEED", "-1"))
    with pytest.raises(ValueError, match=f"{SAVED}.*{message}") as error:
        trainer.resume_or_load()
    assert str(error.value).isprintable()


def test_momentum_in_shared_memory_is_separated(config, interrupted):
    content = torch.load(interrupted / SAVED, weights_only=True)
    state = content["trainer"]["_trainer"]["optimizer"]["state"]
    for entry in state.values():
        entry["momentum_buffer"] = torch.zeros(1).expand(entry["momentum_buffer"].shape)
    torch.save(content, interrupted / SAVED)
    trainer = Trainer(config(interrupted, "SEED", "-1"))
    trainer.resume_or_load()
    trainer.train()
    assert trainer.iter == STEPS


def test_metrics_have_neither_gaps_nor_repeats(tmp_path):
    file = tmp_path / "metrics.json"
    cut_metrics(file, 0)  # there is none
    lines = [json.dumps({"iteration": i}) + "\n" for i in (19, 39, 59)]
    for content, start, kept in (
        (lines, 40, lines[:2]),
        (lines, 60, lines),
        ([*lines[:2], '{"iteration": 59, "lo'], 60, lines[:2]),
        ([*lines[:2], '{"iteration": 59}'], 60, lines[:2]),
    ):
        file.write_text("".join(content))
        with open(file, "a") as writer:  # opened before, as Detectron2's writer
            cut_metrics(file, start)
            writer.write("next\n")
        assert file.read_text() == "".join(kept) + "next\n"
