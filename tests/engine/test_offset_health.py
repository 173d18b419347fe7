import json
import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils.events import JSONWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_deformable import add_deformable_config
from d2_deformable.engine import OffsetHealth, Trainer
from d2_deformable.layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor

ROIS = torch.tensor([[0, 0, 0, 64.0, 128], [1, 32, 0, 96, 64]])  # of 8 x 16 cells and 8 x 8 cells


class Model(nn.Module):
    """One layer of each kind on a map (2, 4, 20, 16) at stride 8."""

    def __init__(self):
        super().__init__()
        self.conv = DeformConv2d(4, 4, 3, padding=1)
        self.pool = DeformRoIPool(4, 2)
        self.vote = PSRoIPredictor(4, 3, 2, spatial_scale=1 / 8, offset_classes=3)
        self.plain_vote = PSRoIPredictor(4, 3, 2, spatial_scale=1 / 8)

    def forward(self, x):
        x = self.conv(x)
        with torch.no_grad():
            self.vote(x, ROIS.flip(0)[:1])  # a pass that only selects RoIs
        pooled = self.pool(x[..., :12], ROIS[:1], 1 / 8), self.pool(x, ROIS[1:], 1 / 8)
        return sum(y.sum() for y in (*pooled, self.vote(x, ROIS), self.plain_vote(x, ROIS)))


class Loop(TrainerBase):
    def __init__(self, model, step, folder=None, **health):
        super().__init__()
        self.model, self.step = model, step
        writer = [PeriodicWriter([JSONWriter(str(folder / "metrics.json"))], 5)] if folder else []
        self.register_hooks([OffsetHealth(model, **health), *writer])

    def run_step(self):
        self.step(self)


def run(model, iterations=20, step=None, folder=None, **health):
    def forward_and_backward(trainer):
        trainer.model(torch.ones(2, 4, 20, 16)).backward()

    loop = Loop(model, step or forward_and_backward, folder, **health)
    loop.train(0, iterations)
    return loop


def logged(loop, name):
    return [value for value, _ in loop.storage.history(f"offsets/{name}").values()]


def shift(model, dy, dx):
    """Set constant offsets, in cells for the convolution and in RoI sizes for the other layers."""
    with torch.no_grad():
        model.conv.conv_offset.bias.copy_(torch.tensor([dy, dx]).repeat(9))
        model.pool.offset_fc.bias.copy_(torch.tensor([dy] * 4 + [dx] * 4) / model.pool.gamma)
        bias = torch.tensor([[dy] * 4, [dx] * 4]).repeat(3, 1)
        model.vote.offset_maps.bias.copy_(bias.flatten() / model.vote.gamma)


@pytest.mark.parametrize("layer", ["conv", "pool", "vote"])
def test_length_of_constant_offsets(layer):
    model = Model()
    shift(model, 0.3, -0.4)
    loop = run(model, 20, period=10)
    assert logged(loop, f"{layer}/mean") == pytest.approx([0.5, 0.5])
    assert logged(loop, f"{layer}/std") == pytest.approx([0, 0], abs=1e-6)
    assert logged(loop, f"{layer}/p99") == pytest.approx([0.5, 0.5])
    assert [i for _, i in loop.storage.history(f"offsets/{layer}/mean").values()] == [9, 19]


@pytest.mark.parametrize("modulated", [False, True])
def test_roi_pooling_of_mmdetection(modulated, caplog):
    class Align(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = DeformRoIAlign(4, 2, hidden_channels=4, modulated=modulated)

        def forward(self, x):
            return self.pool(x, ROIS, 1 / 8).sum()

    model = Align()
    with torch.no_grad():
        model.pool.offset_fc[-1].bias.copy_(torch.tensor([0.3] * 4 + [-0.4] * 4) / 0.1)
    loop = run(model, 1, period=1)
    assert logged(loop, "pool/mean") == pytest.approx([0.5])
    # None of the RoIs' rows leaves the map of 20 rows. Bins have 4 columns of samples, which are on
    # [0, 8) and [4, 12) and move 3.2 cells to the left: 3 of the first 8 leave the map, and none of
    # the others.
    assert logged(loop, "pool/outside") == pytest.approx([(3 / 8 + 0) / 2])
    with caplog.at_level(logging.WARNING):
        with torch.no_grad():
            model.pool.offset_fc[-1].bias.fill_(50.0)
        run(model, 1, period=1)
    assert "run away" in caplog.text and "['offset_fc', 0.1]" in caplog.text


def test_spread_of_offsets():
    model = Model()
    with torch.no_grad():
        model.conv.conv_offset.bias[::2] = torch.arange(9.0)  # dy of each tap
    loop = run(model, 1, period=1)
    assert logged(loop, "conv/mean") == [4]
    assert logged(loop, "conv/std") == pytest.approx([(60 / 9) ** 0.5])
    assert logged(loop, "conv/p99") == [8]


def test_share_outside_the_map():
    model = Model()
    loop = run(model, 1, period=1)
    rows, columns = 1 - 2 / 60, 1 - 2 / 48  # inside, of 3 x 3 taps of 20 x 16 cells
    assert logged(loop, "conv/outside") == pytest.approx([1 - rows * columns])
    assert logged(loop, "pool/outside") == logged(loop, "vote/outside") == [0]

    shift(model, 0.0, 4.0)  # 4 cells to the right for conv, 4 RoI sizes for the others
    loop = run(model, 1, period=1)
    columns = 1 - (3 + 4 + 5) / 48
    assert logged(loop, "conv/outside") == pytest.approx([1 - rows * columns])
    assert logged(loop, "pool/outside") == logged(loop, "vote/outside") == [1]

    shift(model, -0.5, 0.0)  # both RoIs begin at the top, so their upper halves leave
    loop = run(model, 1, period=1)
    assert logged(loop, "pool/outside") == logged(loop, "vote/outside") == [0.5]


@pytest.mark.parametrize(("round_rois", "outside"), [(True, 0), (False, 1 / 8)])
def test_rois_are_rounded_as_the_operator_does(round_rois, outside):
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = DeformRoIPool(4, 2, round_rois=round_rois)

        def forward(self, x):  # the first of 8 columns of samples is outside, or rounded to 0
            return self.pool(x, torch.tensor([[0, -0.4, 0, 63.6, 128]]), 1 / 8).sum()

    assert logged(run(Pool(), 1, period=1), "pool/outside") == pytest.approx([outside])


def test_boxes_of_mmdetection_have_no_minimum_size():
    class Align(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = DeformRoIAlign(4, 2, hidden_channels=4)

        def forward(self, x):  # on the last column's border, where samples count
            return self.pool(x, torch.tensor([[0, 128.0, 0, 128, 128]]), 1 / 8).sum()

    assert logged(run(Align(), 1, period=1), "pool/outside") == [0]


def test_all_passes_of_a_step_count():
    model = Model()

    def two_passes(trainer):
        for dy in (1.0, 3.0):
            shift(model, dy, 0.0)
            model(torch.ones(2, 4, 20, 16)).backward()

    loop = run(model, 1, two_passes, period=1)
    assert logged(loop, "conv/mean") == logged(loop, "vote/mean") == [pytest.approx(2)]


def test_a_pass_without_gradient_does_not_count():
    model = Model()
    shift(model, 3.0, 4.0)

    def step(trainer):
        shift(model, 0.0, 0.0)
        with torch.no_grad():
            shift(model, 30.0, 0.0)
            model(torch.ones(2, 4, 20, 16))
        shift(model, 3.0, 4.0)
        model(torch.ones(2, 4, 20, 16)).backward()

    assert logged(run(model, 1, step, period=1), "conv/mean") == [pytest.approx(5)]


def test_autocast_changes_nothing():
    model = Model()
    shift(model, 10.3, 0.0)  # bfloat16 would round it to 10.3125

    def step(trainer):
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(2, 4, 20, 16)).float().backward()

    assert logged(run(model, 1, step, period=1), "conv/mean") == [pytest.approx(10.3, abs=1e-5)]


def test_distributed_training_keeps_the_names(monkeypatch):
    monkeypatch.setattr(DistributedDataParallel, "__init__", lambda self, model: None)
    wrapped = DistributedDataParallel(Model())
    nn.Module.__init__(wrapped)
    wrapped.module = Model()
    assert set(OffsetHealth(wrapped)._layers) == {"conv", "pool", "vote"}


def test_nothing_is_left_behind():
    model = Model()
    run(model, 3, period=2)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("health", [{"period": 0}, {}])
def test_idle(health):
    model = Model() if health else nn.Sequential(nn.Conv2d(4, 1, 20))
    loop = run(model, 20, lambda trainer: None, **health)
    assert not [name for name in loop.storage.histories() if name.startswith("offsets")]


def test_a_step_without_rois_or_forward_logs_nothing():
    model = Model()
    loop = run(model, 1, lambda trainer: model.pool(torch.ones(1, 4, 8, 8), ROIS[:0], 1), period=1)
    assert not loop.storage.histories()


def test_metrics_json_holds_what_was_measured(tmp_path):
    model = Model()

    def step(trainer):
        shift(model, trainer.iter + 1.0, 0.0)
        model(torch.ones(2, 4, 20, 16)).backward()

    run(model, 12, step, tmp_path, period=5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    read = {line["iteration"]: line["offsets/conv/mean"] for line in lines}
    assert read == {4: 5, 9: 10, 11: 12}  # neither smoothed nor one period late


def warnings(caplog, *args, **kwargs):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "d2_deformable"):
        run(*args, **kwargs)
    return [record.getMessage() for record in caplog.records]


def test_offsets_at_zero_are_reported_once(caplog):
    (text,) = warnings(caplog, Model(), 40, period=5, zero_after=12)
    assert "still at zero after 15 iterations" in text
    assert "conv (99th percentile 0 cells" in text
    assert "pool (99th percentile 0 RoI sizes" in text
    assert "vote (99th" in text
    assert "[['conv_offset|offset_fc|offset_maps', 10.0]]" in text


@pytest.mark.parametrize("health", [{"zero_after": 8}, {"zero_after": 5, "warmup": 3}])
def test_a_run_too_short_to_judge_is_not_judged(caplog, health):
    assert not warnings(caplog, Model(), 7, period=1, **health)
    (text,) = warnings(caplog, Model(), 8, period=1, **health)
    assert "still at zero after 8 iterations" in text


def test_unusably_small_offsets_are_reported(caplog):
    model = Model()
    shift(model, 0.002, 0.0)  # too small in cells, large enough in RoI sizes
    (text,) = warnings(caplog, model, 1, period=1, zero_after=1)
    assert "conv (99th percentile 0.002 cells" in text
    assert "pool" not in text
    shift(model, 0.02, 0.0)
    assert not warnings(caplog, model, 1, period=1, zero_after=1)


@pytest.mark.parametrize(
    ("dy", "reported"),
    [
        (1.0, []),
        (9.0, ["conv", "pool", "vote"]),  # over half of 16 cells
        (float("nan"), ["conv", "pool", "vote"]),
    ],
)
def test_offsets_that_run_away_are_reported_once(caplog, dy, reported):
    model = Model()
    shift(model, 0.0, dy)

    def step(trainer):  # each layer by itself, since a NaN would spread
        x = torch.ones(2, 4, 20, 16)
        model.conv(x), model.pool(x, ROIS, 1 / 8), model.vote(x, ROIS)

    texts = warnings(caplog, model, 5, step, period=1, max_outside=2.0)
    assert len(texts) == bool(reported)
    for layer in reported:
        assert f"{layer} (99th percentile" in texts[0]
        assert "at iteration 1:" in texts[0]
        assert "DEFORM_OFFSET_CLAMP" in texts[0]


def test_samples_moved_out_of_the_map_are_reported(caplog):
    model = Model()
    shift(model, 0.0, -0.3)  # in RoI sizes; the second RoI begins at column 4 of 16
    assert not warnings(caplog, model, 1)
    shift(model, 0.0, -0.9)
    (text,) = warnings(caplog, model, 1)
    assert "pool (99th percentile 0.9 RoI sizes" in text
    assert "conv" not in text.split(". Lower")[0]


def test_samples_that_are_outside_without_offsets_are_not_reported(caplog):
    model = Model()
    shift(model, 0.02, 0.0)
    assert not warnings(caplog, model, 1, max_outside=0.05)  # 7 % are outside without offsets


@pytest.mark.parametrize(
    ("dy", "zero_after", "words"),
    [
        (0.0, 9, "still near zero in 3 of 3 layers, p99 0 cells, 0 RoI sizes"),
        (0.0, 1, "at zero in 3 of 3 layers, p99 0 cells, 0 RoI sizes"),
        (0.002, 1, "at zero in 1 of 3 layers, p99 0.002 cells, 0.002 RoI sizes"),
        (0.25, 1, "healthy, p99 0.25 cells, 0.25 RoI sizes"),
        (2.0, 1, "running away in 2 of 3 layers, p99 2 cells, 2 RoI sizes"),
    ],
)
def test_health_in_words(dy, zero_after, words):
    model = Model()
    shift(model, dy, 0.0)
    health = {"period": 2, "zero_after": zero_after, "max_outside": 2.0}
    (hook,) = run(model, 2, **health)._hooks
    assert hook.in_words == words
    (hook,) = run(model, 1, period=0)._hooks
    assert hook.in_words == ""


def test_health_in_words_shows_nan():
    model = Model()
    shift(model, 0.1, 0.0)

    def step(trainer):
        model.pool(torch.ones(2, 4, 20, 16), ROIS, 1 / 8)
        model.vote(torch.full((2, 4, 20, 16), float("nan")), ROIS)

    (hook,) = run(model, 1, step, period=1)._hooks
    assert hook.in_words == "running away in 1 of 2 layers, p99 nan RoI sizes"


def test_trainer_registers_it_before_the_writers(monkeypatch):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.OFFSET_HEALTH.PERIOD = 7
    cfg.SOLVER.WARMUP_ITERS = 30
    trainer = Trainer.__new__(Trainer)
    trainer._trainer, trainer.checkpointer = SimpleNamespace(), None
    trainer.cfg, trainer.model = cfg, Model()
    writer = PeriodicWriter([])
    built = [IterationTimer(), writer]
    monkeypatch.setattr("detectron2.engine.DefaultTrainer.build_hooks", lambda self: built)
    health, *_, last = trainer.build_hooks()
    assert last is writer
    assert health.period == 7
    assert (health.max_conv, health.zero_after, health.warmup) == (0.5, 1000, 30)


def test_defaults_of_config_and_class_agree():
    cfg = get_cfg()
    add_deformable_config(cfg)
    of_cfg, of_class = OffsetHealth(cfg, Model()), OffsetHealth(Model())
    for key in cfg.OFFSET_HEALTH:
        assert getattr(of_cfg, key.lower()) == getattr(of_class, key.lower())


def test_a_negative_period_is_refused():
    with pytest.raises(ValueError, match="OFFSET_HEALTH.PERIOD is -1"):
        OffsetHealth(Model(), period=-1)
