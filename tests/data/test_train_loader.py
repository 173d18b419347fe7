"""The train loader gives Detectron2's images in Detectron2's order, from any iteration on."""

import os
import random
import signal
import subprocess
import time
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from d2_deformable.data import TrainLoader
from d2_deformable.utils.seeding import seeded

RECORDS = [{"id": i, "width": 20 + i % 3, "height": 21} for i in range(7)]


def add_random_numbers(record):
    numbers = random.random(), np.random.rand(), torch.rand(()).item()
    return {**record, "numbers": numbers}


def loader(seed=5, **options):
    return TrainLoader(
        RECORDS,
        add_random_numbers,
        lambda seed: TrainingSampler(7, seed=seed),
        2,
        seed=seed,
        **options,
    )


def take(batches, count=9):
    return list(islice(batches, count))


@pytest.mark.parametrize("group_by_aspect", [False, True])
def test_order_is_that_of_detectron2(group_by_aspect):
    theirs = build_detection_train_loader(
        RECORDS,
        mapper=dict,
        sampler=TrainingSampler(7, seed=5),
        total_batch_size=2,
        aspect_ratio_grouping=group_by_aspect,
    )
    ours = take(loader(group_by_aspect=group_by_aspect))
    ids = [[record["id"] for record in batch] for batch in ours]
    assert ids == [[record["id"] for record in batch] for batch in take(theirs)]


def test_every_image_has_its_own_random_numbers():
    numbers = [x for batch in take(loader()) for record in batch for x in record["numbers"]]
    assert len(set(numbers)) == len(numbers)
    assert numbers != [x for b in take(loader(seed=6)) for r in b for x in r["numbers"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_starts_anywhere(workers):
    later = loader(seed=1, num_workers=workers)
    batches = iter(later)  # Detectron2's trainer does so before a checkpoint is loaded
    later.seed, later.start = 5, 4
    assert take(batches, 5) == take(loader())[4:]


def test_random_numbers_of_the_training_go_on():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = add_random_numbers({})
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    take(loader())
    with pytest.raises(KeyError), seeded(1, 2):
        raise KeyError
    assert add_random_numbers({}) == expected


def with_process(record):
    return {**record, "process": os.getpid()}


def test_a_scheduler_does_not_end_the_workers():
    """It signals every process of a job, while the training still needs images to stop well."""
    loader = TrainLoader(
        RECORDS,
        with_process,
        lambda seed: TrainingSampler(7, seed=seed),
        2,
        seed=0,
        num_workers=1,
    )
    batches = iter(loader)
    process = next(batches)[0]["process"]
    subprocess.run(["kill", "-TERM", str(process)], check=True)
    time.sleep(0.2)
    assert {one["process"] for _ in range(5) for one in next(batches)} == {process}
    os.kill(process, signal.SIGTERM)  # from the process that has started it
    assert os.waitpid(process, 0)[1] == 0
