"""Random numbers derived from a key such as (seed, iteration).

A training that takes its random numbers from (seed, iteration) can be interrupted anywhere and goes
on as if it had not been, without the state of any generator in its checkpoints.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, on every device, by a tuple of numbers."""
    seed = _seed_of(key)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU inside the block; restore their states after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = _seed_of(key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_of(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
