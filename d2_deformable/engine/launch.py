"""Join and leave the processes of a training."""

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist

from ..compat import require_private

require_private(comm, "_LOCAL_PROCESS_GROUP", "_get_global_gloo_group")


def started_by_torchrun() -> bool:
    """Return True if the environment gives this process a rank among several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def restarted() -> bool:
    """Return True if torchrun has started this process again, after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def highest_of_processes(number: int, model) -> int:
    """Return the highest number of all processes, which each must ask for at the same point.

    Args:
        model: on the device that they talk through.
    """
    if comm.get_world_size() == 1:
        return int(number)
    highest = torch.tensor(int(number), device=next(model.parameters()).device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


@contextmanager
def torchrun_processes(device: str) -> Iterator[None]:
    """Be one of torchrun's processes inside the block, as after Detectron2's `launch`.

    How the block may end: see `leaving_process_group`.

    Args:
        device: MODEL.DEVICE. The processes talk by gloo on "cpu", by NCCL on GPUs.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and LOCAL_RANK, the place among the
    processes of this machine, whose ranks follow one another; without it there are no others here.

    Raises:
        ValueError: this machine has fewer GPUs than processes, or a variable is missing.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_cpu = torch.device(device).type == "cpu"
    if not on_cpu:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {local_rank}, but {torch.cuda.device_count()} GPUs are visible; "
                "start one process per GPU (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(local_rank)
    store, rank, world_size = next(dist.rendezvous("env://"))
    # torchrun's store outlives its processes: those that are started again must not find the
    # addresses of those before.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "gloo" if on_cpu else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    with leaving_process_group():
        _find_machine(first=rank - local_rank)
        comm.synchronize()
        yield


def _find_machine(first: int) -> None:
    """Tell Detectron2 which processes share a machine; `first` is the lowest rank on this one."""
    firsts = [None] * comm.get_world_size()
    dist.all_gather_object(firsts, first)
    for one in sorted(set(firsts)):  # every process must create every group
        group = dist.new_group([rank for rank, other in enumerate(firsts) if other == one])
        if one == first:
            # Detectron2 main has create_local_process_group for this, 0.5 only its own launch.
            comm._LOCAL_PROCESS_GROUP = group


@contextmanager
def leaving_process_group() -> Iterator[None]:
    """After the block, leave the process group, if there is one, together with the others.

    All processes must end the block alike, by SystemExit or without an exception. After another
    exception nobody waits.

    The network of the block must not be referred to from outside of it: DistributedDataParallel
    keeps the group, and so gloo's threads. One that frees the tensors of a past call while Python
    ends aborts the process.
    """
    together = True
    try:
        yield
    except SystemExit as stopped:  # by a signal, after the same step in all processes
        traceback.clear_frames(stopped.__traceback__)  # they refer to the network
        raise
    except BaseException:
        together = False
        raise
    finally:
        if dist.is_initialized():
            try:
                if together:
                    comm.synchronize()  # gloo aborts in a process whose partner has left
            finally:
                comm._LOCAL_PROCESS_GROUP = None
                comm._get_global_gloo_group.cache_clear()
                gc.collect()
                dist.destroy_process_group()
