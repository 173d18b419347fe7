"""Division of a call by csrc/cuda/plan.h: properties for all sizes, even those that exceed memory.

Sizes are drawn from all orders of magnitude, including the smallest ones and those around powers
of two. Python's integers have no limits, so a 64-bit overflow in C++ shows as a difference.
"""

import random
from itertools import product

import pytest

from cuda_emulator import emulator

SMALL = [1, 2, 3, 31, 32, 33, 127, 128, 129]
LARGE = [2**31 - 1, 2**31, 2**32 + 1, 2**40]


def sizes(count, most):
    """Some of each order of magnitude up to `most`."""
    draw = random.Random(0)
    return [int(2 ** draw.uniform(0, most.bit_length() - 1)) for _ in range(count)]


@pytest.fixture(scope="module")
def plan(compiler, tmp_path_factory):
    return emulator.Library("plan", tmp_path_factory.mktemp("plan"))


def test_chunks(plan):
    max_bytes, gemm_rows, _, _ = plan("constants", size=4)
    all_rows = [0, *SMALL, *LARGE, *sizes(40, 2**40)]
    rows_bytes = [1, 8, max_bytes - 1, max_bytes, max_bytes + 1, *sizes(40, 2**50)]
    rows_that_fit = [(max_bytes // n + more, n) for n in (1, 100, 10**5, 10**7) for more in (0, 1)]
    for rows, row_bytes in [*product(all_rows, rows_bytes), *rows_that_fit]:
        count, size = plan("chunks", rows, row_bytes)
        # Rows are covered once: chunk k begins after k whole ones, the last one ends with the rows.
        assert size >= 1 and count == -(-rows // size)
        for k in {0, count // 2, max(count - 2, 0), count - 1} if count else ():
            first, length = plan("chunk", rows, row_bytes, k)
            assert first == k * size and length == min(size, rows - first) > 0
        assert size == 1 or size * row_bytes <= max_bytes
        # Sizes are multiples of gemm_rows if there are several chunks and max_bytes permits.
        largest = max(max_bytes // row_bytes, 1)
        if count > 1 and largest >= gemm_rows:
            assert size % gemm_rows == 0
            largest -= largest % gemm_rows
        # There are as few chunks as possible, and the last one is not a small remainder.
        assert count == (-(-rows // largest) if rows > max_bytes // row_bytes else min(rows, 1))
        assert size <= -(-rows // max(count, 1)) + gemm_rows


def test_units(plan):
    _, _, threads, packs_per_lane = plan("constants", size=4)
    counts = [0, *SMALL, *LARGE, *sizes(20, 2**60)]
    for packs, count in product([*range(1, 200), *LARGE], counts):
        lanes, blocks = plan("units", count, packs)
        assert lanes in (1, 2, 4, 8, 16, 32)
        assert lanes < 2 * packs, "half of the lanes have no pack"
        assert lanes == 32 or packs <= lanes * packs_per_lane
        # The threads of all blocks reach every unit, and every block has units.
        assert (blocks - 1) * (threads // lanes) < count <= blocks * (threads // lanes)


def test_divisor(plan):
    numbers = [*SMALL, 2**30, 2**31 - 2, 2**31 - 1, *sizes(100, 2**31 - 1)]
    near = [k * divisor + d for k, divisor, d in product([1, 2, 1000], numbers, [-1, 0])]
    for divisor in numbers:
        for dividend in [0, *numbers, *(n for n in near if n < 2**31)]:
            assert tuple(plan("divide", dividend, divisor)) == divmod(dividend, divisor)
