"""Every fuzz target, without a fuzzer: its seeds, among them the findings of the past."""

import pytest

from fuzz import run


@pytest.mark.parametrize("name", run.targets())
def test_seeds_find_nothing(name):
    target = run.load(name)
    assert target.SEEDS
    for seed in target.SEEDS:
        target.one_input(seed)
