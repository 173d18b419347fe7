"""Division of planes, RoIs and bins by csrc/cuda/roi_plan.h: properties for all sizes, even those
that exceed memory. Python's integers have no limits, so a 64-bit overflow in C++ shows as a
difference."""

import random
from collections import Counter, namedtuple
from itertools import product

import pytest

from cuda_emulator import emulator

Plan = namedtuple("Plan", "planes splits threads roi_threads shared copies shared_bytes pieces")
GPUS = [(68, 64 << 10), (132, 227 << 10), (1, 48 << 10)]  # processors, shared memory per block
MAX_THREADS = 512


def workloads(count):
    """(planes, pixels, rois, bins) of every order of magnitude."""
    draw = random.Random(0)
    yield from product([0, 1, 300], [1, 63, 2394], [0, 1, 33, 300], [1, 49])
    for most in [2**10, 2**30]:
        for _ in range(count):
            yield tuple(int(2 ** draw.uniform(0, most.bit_length())) for _ in range(4))


@pytest.fixture(scope="module")
def library(compiler, tmp_path_factory):
    return emulator.Library("roi_plan", tmp_path_factory.mktemp("roi_plan"))


def reading_plans(library):
    for (planes, pixels, rois, bins), gpu, size in product(workloads(60), GPUS, [2, 4, 8]):
        for reads in (1, 25):
            sizes = (planes, pixels, rois, bins, reads, size, *gpu)
            yield (
                (planes, pixels, rois, bins, reads, size),
                gpu,
                Plan(*library("reading", *sizes, size=8)),
            )


def adding_plans(library):
    for (planes, pixels, rois, bins), gpu, size in product(workloads(60), GPUS, [4, 8]):
        for in_order in (0, 1):
            sizes = (planes, pixels, rois, bins, size, in_order, *gpu)
            yield (
                (planes, pixels, rois, bins, size, in_order),
                gpu,
                Plan(*library("adding", *sizes, size=8)),
            )


def check_block(plan):
    assert 32 <= plan.threads <= MAX_THREADS and plan.threads % 32 == 0
    assert plan.roi_threads % 32 == 0 and plan.splits >= 1
    assert plan.pieces == plan.planes * plan.splits


def check_shared(plan, bytes_per_copy, gpu):
    assert 0 <= plan.shared_bytes <= gpu[1]
    assert plan.shared == (plan.copies > 0)
    assert plan.shared_bytes == plan.copies * bytes_per_copy


def test_reading(library):
    for (planes, pixels, rois, bins, reads, size), gpu, plan in reading_plans(library):
        check_block(plan)
        check_shared(plan, pixels * size + 16, gpu)
        assert plan.planes == planes and plan.copies <= 1
        assert plan.threads % plan.roi_threads == 0
        # A plane is copied to shared memory only if each of its blocks reads it about that often.
        assert not plan.shared or plan.splits * max(pixels // reads, 1) <= max(rois * bins, 1)
        # Splitting makes no more blocks than fill the processors.
        assert plan.splits == 1 or (plan.splits - 1) * max(planes, 1) < gpu[0] * 8
        # Every block has RoIs, and every warp has bins.
        assert (plan.splits - 1) * plan.roi_threads < max(rois, 1)
        assert plan.threads // plan.roi_threads <= max(bins, 1)


def test_adding(library):
    for (planes, pixels, _, _, size, in_order), gpu, plan in adding_plans(library):
        check_block(plan)
        check_shared(plan, pixels * size, gpu)
        assert plan.planes == planes and plan.splits == 1
        # Every plane that fits has an owner, which writes it once.
        assert plan.shared == (pixels * size <= gpu[1])
        if in_order:
            # Each warp has its own copy, so no two warps add to the same place.
            assert plan.threads == 32 * max(plan.copies, 1)
        else:
            assert plan.copies <= 1 and plan.threads % plan.roi_threads == 0


def test_every_bin_of_every_roi_once(library):
    """Divide bins and RoIs among threads as RoiShare (csrc/cuda/kernels/roi_planes.h) does."""
    for (_, pixels, rois, bins, _, size), _, plan in reading_plans(library):
        if rois * bins > 20000 or size != 4 or pixels > 2394:
            continue
        visits = Counter()
        for split, thread in product(range(plan.splits), range(plan.threads)):
            first_bin, own_roi = divmod(thread, plan.roi_threads)
            first = split * plan.roi_threads + own_roi
            for index in range(first_bin, bins, plan.threads // plan.roi_threads):
                for roi in range(first, rois, plan.splits * plan.roi_threads):
                    visits[roi, index] += 1
        assert len(visits) == rois * bins and set(visits.values()) <= {1}
