"""One run: how it trains, and what it records of its trunk."""

import hashlib
from types import SimpleNamespace

import pytest

from benchmarks.learning import run as learning
from benchmarks.learning.study import PLAN

TRUNK, ARM = next(repetition for repetition in PLAN if repetition.trunk).runs[:2]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The arguments of the trainings; each replaces the trunk's checkpoint when it ends."""
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / TRUNK.checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("before")
    (tmp_path / TRUNK.start).write_text("pretrained")
    started = []

    def train(args):
        started.append(args)
        checkpoint.write_text("after")

    monkeypatch.setattr(learning.train_net, "main", train)
    finished = SimpleNamespace(iterations=1, history=[], cfg=None)
    monkeypatch.setattr(learning, "read_run", lambda folder: finished)
    monkeypatch.setattr(learning.measure, "measure", lambda *_: {})
    return started


def test_a_trunk_continues_and_an_arm_starts_anew(started):
    """The folder of an arm may hold a training from another trunk."""
    for run in (TRUNK, ARM):
        learning.train_and_measure(run.name)
    assert [args.resume for args in started] == [True, False]


def test_an_arm_names_the_weights_that_it_started_from(started):
    record = learning.train_and_measure(ARM.name)
    assert record["start_sha256"] == hashlib.sha256(b"before").hexdigest()
