"""Signals stop a training with a checkpoint."""

import signal
from contextlib import nullcontext

import detectron2.utils.comm as comm
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, TrainerBase

from d2_deformable.engine import interruption
from d2_deformable.engine.interruption import SIGNALS, Interruption


class Loop(TrainerBase):
    """Training of one number, `model.weight`, by 1 per step."""

    def __init__(self, folder, step=None, after=None):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        self.step, self.after = step, after
        self.average = torch.nn.Linear(1, 1)
        checkpointer = DetectionCheckpointer(self.model, str(folder))
        self.interruption = Interruption(checkpointer, [self.average])
        self.register_hooks([self.interruption])

    @torch.no_grad()
    def run_step(self):
        if self.step:
            self.step(self)
        self.model.weight += 1

    def after_step(self):
        super().after_step()
        if self.after:
            self.after(self)


def send(number, at=2, times=1):
    """Make a function that sends the signal to this process in iteration `at`."""

    def step(loop):
        if loop.iter == at:
            for _ in range(times):
                signal.raise_signal(number)  # os.kill could merge two signals into one

    return step


@pytest.mark.parametrize(
    "number, error",
    [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit), ("SIGUSR1", SystemExit)],
)
def test_a_signal_stops_after_the_step(tmp_path, caplog, number, error):
    before = [signal.getsignal(s) for s in SIGNALS]
    loop = Loop(tmp_path, send(getattr(signal, number)))
    with pytest.raises(error) as stopped:
        loop.train(0, 5)
    assert number == "SIGINT" or stopped.value.code == 0
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert saved["iteration"] == 2 and saved["model"]["weight"] == 3
    assert f"after iteration 3, saved in {tmp_path}/model_0000002.pth. To go on" in caplog.text
    assert "Traceback" not in caplog.text
    assert before == [signal.getsignal(s) for s in SIGNALS]


@pytest.fixture
def usual_handler():
    """Python's own handler of Ctrl-C; a process that runs in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_stops_at_once(tmp_path, usual_handler):
    loop = Loop(tmp_path, send(signal.SIGINT, times=2))
    with pytest.raises(KeyboardInterrupt):
        loop.train(0, 5)
    assert loop.model.weight == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["model", "average"])
def test_an_evaluation_stops_at_once(tmp_path, network):
    def evaluate(loop):
        getattr(loop, network).eval()
        send(signal.SIGINT)(loop)
        getattr(loop, network).train()

    loop = Loop(tmp_path, after=evaluate)
    with pytest.raises(KeyboardInterrupt):
        loop.train(0, 5)
    assert not getattr(loop, network).training
    assert torch.load(tmp_path / "model_0000002.pth", weights_only=True)["iteration"] == 2


class LastEvaluation(HookBase):
    """Evaluates in `after_train`, as Detectron2 does after the last step, and gets a signal."""

    def after_train(self):
        self.trainer.model.eval()
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_last_evaluation_loses_nothing(tmp_path, capfd, monkeypatch, world_size):
    """With several processes it goes on, since the others would wait."""
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(interruption, "highest_of_processes", lambda number, model: number)
    unhandled = []
    former = signal.signal(signal.SIGTERM, lambda *_: unhandled.append(True))
    before = [signal.getsignal(s) for s in SIGNALS]
    loop = Loop(tmp_path)
    loop.register_hooks([LastEvaluation()])
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(SystemExit) if world_size == 1 else nullcontext() as stopped:
        loop.train(0, 3)
    assert world_size > 1 or stopped.value.code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["last_checkpoint"]
    expected = "Stopping this evaluation" if world_size == 1 else "Stopping after this evaluation"
    assert capfd.readouterr().err.startswith(expected)
    loop.interruption.restore()
    assert before == [signal.getsignal(s) for s in SIGNALS] and not unhandled
    signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize("name", ["model_0000002.pth", "model_final.pth"])
def test_a_checkpoint_of_the_same_step_is_kept(tmp_path, name):
    (tmp_path / "last_checkpoint").write_text(name)
    loop = Loop(tmp_path, send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        loop.train(0, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["last_checkpoint"]


def test_a_process_of_the_data_loader_goes_on(tmp_path):
    loop = Loop(tmp_path)
    loop.interruption.before_train()
    loop.interruption._process += 1
    loop.interruption._handle(signal.SIGINT, None)
    loop.interruption.restore()
    assert not loop.interruption.stopped and not list(tmp_path.iterdir())


def test_a_run_without_signals_is_not_disturbed(tmp_path):
    loop = Loop(tmp_path)
    loop.train(0, 3)
    loop.interruption.restore()
    assert loop.model.weight == 3 and not list(tmp_path.iterdir())
