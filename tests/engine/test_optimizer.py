import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from d2_deformable import add_deformable_config
from d2_deformable.engine import build_optimizer, multiply_learning_rates
from d2_deformable.engine.optimizer import clipped_sgd


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.SOLVER.BASE_LR = 0.1
    return cfg


@pytest.fixture
def model():
    return nn.ModuleDict(
        {"body": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "offset": nn.Conv2d(4, 2, 1)}
    )


def learning_rates(optimizer, model):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: g["lr"] for g in optimizer.param_groups for p in g["params"]}


def test_multipliers_multiply_on_full_names(cfg, model):
    cfg.SOLVER.LR_MULTIPLIERS = [["^offset", 0.01], ["bias$", 2.0]]
    rates = learning_rates(build_optimizer(cfg, model), model)
    assert rates == pytest.approx(
        {
            "body.weight": 0.1,
            "body.bias": 0.2,
            "norm.weight": 0.1,
            "norm.bias": 0.2,
            "offset.weight": 0.001,
            "offset.bias": 0.002,
        }
    )


def test_detectron2s_own_keys_still_hold(cfg, model):
    cfg.SOLVER.LR_MULTIPLIERS = [["offset", 0.5]]
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.25
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    optimizer = build_optimizer(cfg, model)
    names = {p: name for name, p in model.named_parameters()}
    decay = {names[p]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay["norm.weight"] == 0.25 and decay["body.bias"] == 0.0
    assert len(optimizer.param_groups) < len(decay) == 6
    assert "Clip" in type(optimizer).__name__


def test_a_step_moves_by_the_multiplied_rate(cfg, model):
    cfg.SOLVER.LR_MULTIPLIERS = [["offset", 0.5]]
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    optimizer = build_optimizer(cfg, model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (before[name] - p).mean().item() for name, p in model.named_parameters()}
    assert moved["body.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["offset.weight"] == pytest.approx(0.05, rel=1e-4)


def test_frozen_parameters_stay_out(cfg, model):
    model["body"].requires_grad_(False)
    assert "body.weight" not in learning_rates(build_optimizer(cfg, model), model)


@pytest.mark.parametrize(
    "multipliers, message",
    [
        ([["ofset", 0.1]], "'ofset' matches no trainable parameter; .*offset.bias"),
        ([["offset"]], "expected \\[regex, factor\\]"),
        ([["offset(", 1.0]], "expected \\[regex, factor\\]"),
        ([["offset", "fast"]], "expected \\[regex, factor\\]"),
        ([["offset", "nan"]], "the factor must be finite and not negative"),
        ([["offset", -1]], "the factor must be finite and not negative"),
    ],
)
def test_bad_multipliers_say_what_to_do(cfg, model, multipliers, message):
    cfg.SOLVER.LR_MULTIPLIERS = multipliers
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg, model)


def test_an_optimizer_of_another_project(model):
    """An optimizer of any kind, over some of the model's parameters and one of another model."""
    model["norm"].requires_grad_(False)
    other = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model["body"].parameters(), other], "lr": 0.2, "betas": (0.8, 0.9)},
            {"params": [*model["norm"].parameters(), *model["offset"].parameters()]},
        ],
        lr=0.1,
    )
    multiply_learning_rates(optimizer, model, [["offset|body.bias", 0.5]])
    rates = {
        p: (group["lr"], group["betas"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates[model["body"].weight] == rates[other] == (0.2, (0.8, 0.9))
    assert rates[model["body"].bias] == (0.1, (0.8, 0.9))
    assert rates[model["norm"].weight] == (0.1, (0.9, 0.999))
    assert rates[model["offset"].bias] == (0.05, (0.9, 0.999))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for p in rates:
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule.step()
    assert {p: group["lr"] for group in optimizer.param_groups for p in group["params"]} == {
        p: pytest.approx(0.1 * rate) for p, (rate, _) in rates.items()
    }


def test_clipped_sgd_clips_each_parameter_by_its_norm():
    short, long = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = clipped_sgd([short, long], clip_norm=2.0, lr=1.0)
    short.grad, long.grad = torch.tensor([0.6, 0.8]), torch.tensor([30.0, 40.0])
    optimizer.step()
    torch.testing.assert_close(short.data, torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(long.data, torch.tensor([-1.2, -1.6]))
