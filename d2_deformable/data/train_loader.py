"""Training batches determined by a seed and the iteration, for exact resuming."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import detectron2.utils.comm as comm
import torch
from detectron2.data import DatasetFromList, build
from torch.utils.data import DataLoader, Dataset, Sampler

from ..compat import require_private
from ..utils.seeding import seeded
from .broken import SkipBrokenImages
from .loading import load_training_records
from .mapper import DatasetMapper

require_private(build, "_train_loader_from_config")


class TrainLoader:
    """Iterates over training batches endlessly, from any iteration on.

    The images and their order are those of Detectron2's train loader. Random augmentation of an
    image follows from `seed` and its place in that order, whichever process makes it.

    Args:
        records: in Detectron2's format, indexable; grouping by aspect ratio reads "width" and
            "height".
        mapper: maps a record.
        make_sampler: (seed) to an endless sampler of indices for this process of the training.
        batch_size: of this process.
        seed: of order and augmentation.
        group_by_aspect: give batches of images that are all wide, or all tall.
        num_workers: processes that map; 0 maps in this one.
        prefetch: batches that each of them has ready or at work, at least 1.

    Attributes:
        seed, start: seed, and the iteration whose batch comes first. Iterators read both when their
            first batch is taken.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        make_sampler: Callable[[int], Sampler],
        batch_size: int,
        *,
        seed: int,
        group_by_aspect: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        self.seed, self.start = seed, 0
        self._records, self._mapper, self._make_sampler = records, mapper, make_sampler
        self._batch_size, self._num_workers = batch_size, num_workers
        self._prefetch = prefetch if num_workers else None  # as DataLoader wants it
        self._is_wide = bytes(len(records))  # all in one group
        if group_by_aspect:
            record_of = map(records.__getitem__, range(len(records)))
            self._is_wide = bytes(r.get("width", 0) > r.get("height", 0) for r in record_of)

    def __iter__(self) -> Iterator[list[dict]]:
        yield from DataLoader(
            _Mapped(self._records, self._mapper, self.seed),
            batch_sampler=self._batches(),
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch,
            worker_init_fn=prepare_worker,
            collate_fn=build.trivial_batch_collator,
            generator=torch.Generator(),  # the default takes a number from the training's own
        )

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (place, index of the record), the first of them that of `start`."""
        groups, batches = ([], []), 0
        step, rank = comm.get_world_size(), comm.get_rank()
        for nth, index in enumerate(self._make_sampler(self.seed)):
            group = groups[self._is_wide[index]]
            group.append((nth * step + rank, index))
            if len(group) == self._batch_size:
                if batches >= self.start:
                    yield group.copy()
                group.clear()
                batches += 1


def prepare_worker(worker: int) -> None:
    """Share memory with the training, and leave SIGTERM to it; a DataLoader's `worker_init_fn`.

    Python's garbage collector writes into every object that it looks at, whereby a forked worker
    would get a private copy of all Python objects of the training.

    Schedulers and `timeout` signal all processes of a job. The training then needs its workers to
    finish the step and to save, so that only its own SIGTERM ends them.
    """
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_the_training, args=(os.getppid(),), daemon=True).start()


def _end_with_the_training(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Mapped(Dataset):
    """Maps the record of a (place, index); random numbers follow from the seed and the place."""

    def __init__(self, records, mapper, seed: int):
        self._records, self._mapper, self._seed = records, mapper, seed

    def __getitem__(self, key: tuple[int, int]) -> dict:
        place, index = key
        with seeded(self._seed, place):
            return self._mapper(self._records[index])


def build_train_loader(cfg) -> TrainLoader:
    """Build the loader of DATASETS.TRAIN from the keys that Detectron2's train loader reads.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH is not a multiple of the number of processes.
    """
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: it must be a multiple of the "
            f"{processes} processes that share a batch"
        )
    records = DatasetFromList(load_training_records(cfg), copy=False)  # serialized
    mapper = DatasetMapper(cfg, True)
    if cfg.INPUT.SKIP_BROKEN_IMAGES:
        mapper = SkipBrokenImages(mapper, records)
    return TrainLoader(
        records,
        mapper,
        partial(_sampler, cfg, records, mapper),
        cfg.SOLVER.IMS_PER_BATCH // processes,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        prefetch=cfg.DATALOADER.PREFETCH_FACTOR,
    )


def _sampler(cfg, records, mapper, seed: int) -> Sampler:
    """The sampler that Detectron2 would use, with this seed."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed  # Detectron2 main seeds samplers by this key
    with seeded(seed):  # and 0.5 by a random number
        return build._train_loader_from_config(cfg, mapper, dataset=records)["sampler"]
