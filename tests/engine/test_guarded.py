"""A step that goes wrong stops the training, in every process, before it reaches the weights."""

import copy

import detectron2.utils.comm as comm
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_deformable.engine.guarded import (
    Diverged,
    GuardedAMPTrainer,
    GuardedCPUAMPTrainer,
    GuardedTrainer,
)
from d2_deformable.engine.launch import leaving_process_group
from d2_deformable.engine.optimizer import clipped_sgd
from d2_deformable.layers import DeformConv2d

IMAGES = [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}]


class Model(nn.Module):
    """y = head(body(1)); its gradient is NaN where `root` is asked for, with a loss of 0."""

    def __init__(self, root=False, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.root, self.factor = root, factor

    def forward(self, batch):
        y = self.head(self.body(torch.ones(1, 2))).float().sum()
        if self.root:
            y = (0 * y).abs().sqrt()
        return {"loss_a": self.factor * y, "loss_b": y.detach() * 0}


def loop(model, kind=GuardedTrainer, clip=None, lr=0.1):
    parameters = [p for p in model.parameters() if p.requires_grad]
    make = clipped_sgd if clip else torch.optim.SGD
    return kind(model, [IMAGES] * 50, make(parameters, lr=lr, **clip or {}))


def step(trainer):
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    return {name: history.latest() for name, history in storage.histories().items()}


@pytest.mark.parametrize("kind", [GuardedTrainer, GuardedCPUAMPTrainer])
@pytest.mark.parametrize("clip", [None, {"clip_norm": 1.0}])
def test_gradients_that_are_not_finite_do_not_reach_the_weights(kind, clip):
    model = Model(root=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Diverged) as error:
        step(loop(model, kind, clip))
    assert "losses are finite, but" in str(error.value)
    assert "gradients of head.bias and 3 other parameters; images a.jpg, b.jpg" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_names_its_images():
    with pytest.raises(Diverged, match=r"loss_a is (nan|-?inf); .*; images a.jpg, b.jpg"):
        step(loop(Model(factor=float("inf"))))


def test_the_norm_is_that_before_clipping():
    model = Model()
    twin = copy.deepcopy(model)
    twin(None)["loss_a"].backward()
    squares = [p.grad.square().sum() for p in twin.parameters()]
    scalars = step(loop(model, clip={"clip_norm": 1e-3}))
    assert scalars["grad_norm"] == pytest.approx(float(sum(squares).sqrt()))
    assert "grad_norm_offsets" not in scalars


def test_the_norm_of_layers_that_predict_offsets():
    class Deformable(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = DeformConv2d(2, 3, 3, padding=1)

        def forward(self, batch):
            return {"loss": self.layer(torch.rand(1, 2, 5, 5)).square().sum()}

    model = Deformable()
    trainer = loop(model)
    scalars = step(trainer)
    squares = [
        p.grad.square().sum() for n, p in model.named_parameters() if ".conv_offset." in f".{n}"
    ]
    assert len(squares) == 2
    assert scalars["grad_norm_offsets"] == pytest.approx(float(sum(squares).sqrt()), rel=1e-5)
    assert 0 < scalars["grad_norm_offsets"] < scalars["grad_norm"]


@pytest.mark.parametrize(
    "lr, message",
    [
        (1e6, r"the update made the weights .* times as large .* less than 10 times"),
        (1e38, "the update made .* NaN or infinite"),
    ],
)
def test_an_update_that_is_too_large_stops(lr, message):
    with pytest.raises(Diverged, match=message):
        step(loop(Model(factor=1e5 if lr == 1e38 else 1.0), lr=lr))


def test_growth_counts_from_the_start_of_the_training():
    trainer = loop(Model(), lr=0.1)
    step(trainer)
    state = copy.deepcopy(trainer.state_dict())
    with torch.no_grad():
        trainer.model.body.weight.mul_(100)
    resumed = loop(trainer.model, lr=1e-9)
    step(resumed)  # without the state it takes these weights as those at the start
    resumed.load_state_dict(state)
    with pytest.raises(Diverged, match="times as large"):
        step(resumed)


def test_a_damaged_norm_in_a_checkpoint_is_passed_over():
    trainer = loop(Model())
    state = {**trainer.state_dict(), "norm_at_start": "1"}
    trainer.load_state_dict(state)
    step(trainer)


def test_every_process_resumes_its_own_loss_normalizer(monkeypatch):
    model = Model()
    model.loss_normalizer = 5  # RetinaNet's is a whole number at first
    monkeypatch.setattr(comm, "all_gather", lambda value: [value, 7.5])
    trainer = loop(model)
    step(trainer)
    state = trainer.state_dict()
    for rank, expected in ((0, 5.0), (1, 7.5), (2, 5.0)):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trainer.load_state_dict(state)
        assert model.loss_normalizer == expected


def test_no_forward_pass_that_waits_for_other_processes(monkeypatch):
    class Synchronised(Model):
        calls = 0

        def __init__(self):
            super().__init__()
            self.norm = nn.SyncBatchNorm(3)

        def forward(self, batch):
            self.calls += 1
            raise FloatingPointError("as Detectron2's RPN")

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    trainer = loop(Synchronised())
    with pytest.raises(Diverged, match="predictions are NaN or infinite; images a.jpg, b.jpg"):
        step(trainer)
    assert trainer.model.calls == 1


def test_weights_that_start_at_zero_may_grow():
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    step(loop(model))


def scaled(model, scale, clip=None):
    """A loop with a loss scale, on the CPU."""
    trainer = loop(model, GuardedAMPTrainer, clip)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


@pytest.fixture
def on_cpu(monkeypatch):
    """AMPTrainer asks for CUDA; its autocast for CUDA has no effect on CPU tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("clip", [None, {"clip_norm": 0.01}])
def test_the_loss_scale_changes_neither_norm_nor_update(on_cpu, clip):
    plain, model = Model(), Model()
    scalars = step(loop(plain, clip=clip))
    trainer = scaled(model, 1024.0, clip)
    assert step(trainer)["grad_norm"] == pytest.approx(scalars["grad_norm"])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


def test_a_step_that_overflows_is_left_out(on_cpu):
    model = Model(root=True)
    before = copy.deepcopy(model.state_dict())
    trainer = scaled(model, 1024.0)
    scalars = step(trainer)
    assert "grad_norm" not in scalars and scalars["amp_scale"] == 1024
    assert trainer.grad_scaler.get_scale() == 512
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(Diverged, match="gradients of head.bias"):
        for _ in range(40):
            step(trainer)


def test_the_loss_scale_is_resumed(on_cpu):
    trainer = scaled(Model(root=True), 1024.0)
    step(trainer)
    other = scaled(Model(), 3.0)
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert other.grad_scaler.get_scale() == 512


class OneBadRank(Model):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, batch):
        losses = super().forward(batch)
        if comm.get_rank() == 1:
            # Infinite without a gradient, or a finite loss with a gradient of NaN
            bad = {"loss": float("inf"), "gradient": (0 * losses["loss_a"]).abs().sqrt()}
            losses["loss_a"] = losses["loss_a"] + bad[self.fault]
        return losses


def one_process(rank, fault, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    with leaving_process_group():
        (folder / f"{rank}.txt").write_text(message_of_a_step(rank, fault))


def message_of_a_step(rank, fault):
    trainer = loop(DistributedDataParallel(OneBadRank(fault)))
    trainer.data_loader = [[{"file_name": f"{rank}.jpg"}]]
    trainer._data_loader_iter = iter(trainer.data_loader)
    try:
        step(trainer)
        return "no error"
    except Diverged as error:
        return str(error)


@pytest.mark.parametrize("fault, image", [("loss", "images 1.jpg"), ("gradient", "0.jpg, 1.jpg")])
def test_all_processes_stop_alike(tmp_path, fault, image):
    torch.multiprocessing.spawn(one_process, (fault, tmp_path), nprocs=2)
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1] and image in messages[0], messages
