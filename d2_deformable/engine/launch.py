"""Join and leave the processes of a training."""

import gc
import os
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist

from ..compat import require_private

require_private(comm, "_LOCAL_PROCESS_GROUP", "_get_global_gloo_group")


def started_by_torchrun() -> bool:
    """Return True if torchrun, or another launcher of several processes, started this process."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    return "RANK" in os.environ and (not alone or "TORCHELASTIC_RUN_ID" in os.environ)


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
def torchrun_processes(device: str) -> Iterator[str]:
    """Be one of torchrun's processes inside the block, as after Detectron2's `launch`.

    Yields the name of the job, which stays when torchrun starts its processes again. Under other
    launchers, or if torchrun has other rendezvous back ends than its own stores, each start has a
    name of its own.

    How the block may end: see `leaving_process_group`.

    Args:
        device: MODEL.DEVICE. The processes talk by NCCL on GPUs, elsewhere by gloo.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and LOCAL_RANK, the place among the
    processes of this machine, whose ranks follow one another; without it there are no others here.

    Raises:
        ValueError: this machine has fewer GPUs than processes, or a variable is missing.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpus = torch.device(device).type == "cuda"
    if on_gpus:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {local_rank}, but {torch.cuda.device_count()} GPUs are visible; "
                "start one process per GPU (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(local_rank)
    store, rank, world_size = next(dist.rendezvous("env://"))
    # torchrun's store outlives its processes.
    store = dist.PrefixStore("d2_deformable", store)
    job = store.compare_set("job", "", uuid.uuid4().hex).decode()
    if world_size == 1:
        yield job
        return
    # Processes that are started again must not find the addresses of those before.
    store = dist.PrefixStore(_name_of_start(store, rank, world_size), store)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    with leaving_process_group():
        _find_machine(first=rank - local_rank)
        comm.synchronize()
        yield job


def _name_of_start(store, rank: int, world_size: int) -> str:
    """Agree on a name with the processes that were started together with this one.

    TORCHELASTIC_RESTART_COUNT is none: each machine counts its own failures. So every process asks
    the first one, which answers until all have got its name.

    Raises:
        torch.distributed.DistStoreError: the others have not come before the time-out.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"question of {rank}", own)
        name = store.get(f"answer to {own}").decode()
        store.set(f"{name} knows {rank}", "")
        return name
    others = set(range(1, world_size))
    end = time.monotonic() + store.timeout.total_seconds()
    while others:
        for other in sorted(others):
            question = store.get(f"question of {other}").decode()  # that of an earlier start first
            store.set(f"answer to {question}", own)
        others = {other for other in others if not store.check([f"{own} knows {other}"])}
        if time.monotonic() > end:
            raise dist.DistStoreError(f"processes {sorted(others)} have not started")
        time.sleep(0.02)
    return own


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
