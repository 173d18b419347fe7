"""Processes started by torchrun train and evaluate together as one process does alone."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import detectron2.utils.comm as comm
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from d2_deformable.engine.launch import (
    _name_of_start,
    leaving_process_group,
    started_by_torchrun,
    torchrun_processes,
)
from d2_deformable.utils.files import reserved
from yamls import CONFIGS

ROOT = Path(__file__).parents[2]
SMALL = shlex.split("""
MODEL.DEVICE cpu SOLVER.MAX_ITER 3 SOLVER.IMS_PER_BATCH 4 SOLVER.WARMUP_ITERS 0 SOLVER.STEPS ()
DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES 12 DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES 3
MODEL.RESNETS.WIDTH_PER_GROUP 8 INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 SEED 3
""")
FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.ALLOW_FROZEN_RANDOM", "True"]
# Equally many RoIs per image, none chosen at random; all images have the same size
ALL_ROIS = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.NMS_THRESH", "1.0"]
ALL_ROIS += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "10000"]
ALL_ROIS += ["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False"]
TIMES = ("time", "data_time", "eta_seconds", "images_per_second", "data_share")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def command(config, folder, processes, *options, flags=(), machines=("--standalone",), restarts=5):
    """The command line of `processes` on this machine."""
    torchrun = ["-m", "torch.distributed.run", *machines, "--nproc-per-node", str(processes)]
    alone = processes == 1 and machines == ("--standalone",)  # not by torchrun
    launcher = [] if alone else [*torchrun, "--max-restarts", str(restarts)]
    words = [sys.executable, *launcher, str(ROOT / "train_net.py"), *flags, "--config-file"]
    return [*words, str(CONFIGS / config), *SMALL, "OUTPUT_DIR", str(folder), *options]


def environment(data):
    return os.environ | {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(data)}


def run(data, *args, **kwargs):
    done = subprocess.run(
        command(*args, **kwargs), env=environment(data), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def lines(folder):
    metrics = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics]


def losses(folder):
    return {k: v for k, v in lines(folder)[0].items() if "loss" in k}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, options, processes",
    [
        # Its batch norm computes statistics over all processes.
        ("quick/warped_shapes_deeplab_R_18_dconv3", ["MODEL.RESNETS.NORM", "naiveSyncBN"], 2),
        ("quick/warped_shapes_rfcn_R_18_dconv3_dpool", [*FROZEN, *ALL_ROIS], 4),
        ("quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool", [*FROZEN, *ALL_ROIS], 2),
    ],
)
def test_several_processes_train_as_one(data, tmp_path, config, options, processes):
    """The same losses, but for the rounding of sums."""
    for count in (1, processes):
        run(data, f"{config}.yaml", tmp_path / str(count), count, *options)
    one, several = losses(tmp_path / "1"), losses(tmp_path / str(processes))
    assert "total_loss" in one
    assert one == pytest.approx(several, rel=1e-5)


@pytest.mark.slow
def test_several_processes_evaluate_as_one(data, tmp_path):
    """Three images are shared out unevenly."""
    name = "warped_shapes_rfcn_R_18_dconv3_dpool"
    options = ["MODEL.WEIGHTS", str(ROOT / f"d2_deformable/model_zoo/{name}.pth")]
    options += ["MODEL.RESNETS.WIDTH_PER_GROUP", "64", "INPUT.MIN_SIZE_TEST", "160"]
    results = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        output = run(data, f"model_zoo/{name}.yaml", folder, count, *options, flags=["--eval-only"])
        results.append(re.findall(r"copypaste: ([\d.,]+)", output))
        assert (folder / "inference/coco_instances_results.json").is_file()
    assert results[0] == results[1]
    assert float(results[0][0].partition(",")[0]) > 5


@pytest.mark.slow
def test_a_process_without_objects(data, tmp_path):
    """Half of the batch is an empty image: its process has no box to learn from."""
    images = []
    for i in range(2):
        Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 96})
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600}
    content = {"images": images, "annotations": [box | {"iscrowd": 0}]}
    content["categories"] = [{"id": 1, "name": "bolt"}]
    (tmp_path / "t.json").write_text(json.dumps(content))
    custom = {"FORMAT": "coco", "ROOT": str(tmp_path), "ANNOTATIONS": "t.json"}
    options = [x for k, v in custom.items() for x in (f"DATASETS.CUSTOM.t.{k}", v)]
    options += ["DATASETS.TRAIN", "('t',)", "DATASETS.TEST", "('t',)"]
    options += ["MODEL.ROI_HEADS.NUM_CLASSES", "1", "SOLVER.IMS_PER_BATCH", "2"]
    options += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]
    run(data, "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", tmp_path / "o", 2, *options)
    assert np.isfinite(losses(tmp_path / "o")["total_loss"])


@contextmanager
def several_agents(tmp_path, data, make_command, count):
    """Start a torchrun for each of `count` machines, all of them on this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    where = ["--nnodes", str(count), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    agents = []
    try:
        for i in range(count):
            with open(tmp_path / f"{i}.txt", "w") as log:
                words = make_command(machines=where if count > 1 else ["--standalone"])
                agent = subprocess.Popen(words, env=environment(data), stdout=log, stderr=log)
                agents.append(agent)
        yield agents
    finally:
        for agent in agents:
            agent.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "processes"), [(1, 1), (1, 2), (2, 1)])
def test_torchrun_restarts_from_the_last_checkpoint(data, tmp_path, machines, processes):
    """Each machine counts the restarts that it caused itself, so the counts of two differ."""
    config = "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
    options = ["SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "5"]
    run(data, config, tmp_path / "whole", machines * processes, *options)
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(tmp_path / "whole/model_final.pth", folder)  # of an earlier training
    make = partial(command, config, folder, processes, *options, flags=["--debug"])
    with several_agents(tmp_path, data, make, machines) as agents:
        while not (folder / "model_0000003.pth").is_file() and agents[-1].poll() is None:
            time.sleep(0.02)
        pid = agents[-1].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        for i, agent in enumerate(agents):
            assert agent.wait(300) == 0, (tmp_path / f"{i}.txt").read_text()[-3000:]
    assert "Resuming from" in (folder / "log.txt").read_text()
    assert (folder / "earlier_1/model_final.pth").is_file()
    killed, whole = lines(folder), lines(tmp_path / "whole")
    assert [line["iteration"] for line in killed] == [line["iteration"] for line in whole]
    for one, other in zip(killed, whole, strict=True):
        assert one == pytest.approx(other, nan_ok=True)


@pytest.fixture
def machines(tmp_path):
    """Two network namespaces and the name of the interface in each, which a cable joins."""
    if not shutil.which("ip"):
        pytest.skip("iproute2 is not installed")
    names = [f"d2_{os.getpid()}_{i}" for i in range(2)]
    cable = f"v{os.getpid()}_"

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", f"{cable}0", "type", "veth", "peer", "name", f"{cable}1")
            for i, name in enumerate(names):
                ip("link", "set", f"{cable}{i}", "netns", name)
                ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"{cable}{i}")
                ip("-n", name, "link", "set", f"{cable}{i}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no right to make network namespaces: {error.stderr.strip()}")
        yield [(name, f"{cable}{i}") for i, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1), (1, 3)])
def test_two_machines_train_as_one(data, tmp_path, machines, sizes):
    """Machines without any network but the cable between them, also of unequal size."""
    config = "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
    options = [*FROZEN, *ALL_ROIS, "SOLVER.CHECKPOINT_PERIOD", "2"]
    run(data, config, tmp_path / "one", 1, *options)
    folder = tmp_path / "two"
    with ExitStack() as stack:
        nodes = []
        for i, (name, interface) in enumerate(machines):
            where = ["--nnodes", "2", "--node-rank", str(i)]
            where += ["--master-addr", "10.77.0.1", "--master-port", "29500"]
            words = command(config, folder, sizes[i], *options, machines=where)
            variables = environment(data) | {"GLOO_SOCKET_IFNAME": interface}
            log = stack.enter_context(open(tmp_path / f"{i}.txt", "w"))
            node = subprocess.Popen(
                ["ip", "netns", "exec", name, *words], env=variables, stdout=log, stderr=log
            )
            stack.callback(node.kill)
            nodes.append(node)
        for i, node in enumerate(nodes):
            assert node.wait(300) == 0, (tmp_path / f"{i}.txt").read_text()[-3000:]
    one, two = lines(tmp_path / "one"), lines(folder)
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert [line["iteration"] for line in two] == [line["iteration"] for line in one]
    assert (folder / "inference/coco_instances_results.json").is_file()


@pytest.mark.slow
def test_a_used_folder(data, tmp_path):
    """A second training puts the first one aside, and no process of a third gets past the lock."""
    config, folder = "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", tmp_path / "o"
    run(data, config, folder, 2)
    first = (folder / "metrics.json").read_bytes()
    run(data, config, folder, 2, "SEED", "4")
    assert (folder / "earlier_1/metrics.json").read_bytes() == first
    assert (folder / "metrics.json").read_bytes() not in (first, b"")
    with reserved(folder, "training"):
        words = command(config, folder, 2, restarts=0)
        done = subprocess.run(words, env=environment(data), capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{folder}: another training writes here (process {os.getpid()} on " in done.stderr
    assert not (folder / "earlier_2").exists()


@pytest.mark.slow
def test_processes_end_with_their_torchrun(data, tmp_path):
    config, folder = "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", tmp_path / "o"
    options = ["SOLVER.MAX_ITER", "1000", "SOLVER.CHECKPOINT_PERIOD", "1"]
    with open(tmp_path / "log.txt", "w") as log:
        words = command(config, folder, 2, *options)
        torchrun = subprocess.Popen(words, env=environment(data), stdout=log, stderr=log)
        while not (folder / "last_checkpoint").is_file() and torchrun.poll() is None:
            time.sleep(0.02)
        assert torchrun.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        torchrun.kill()
        torchrun.wait()
    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            with reserved(folder, "training"):
                return
        except BlockingIOError:
            time.sleep(0.1)
    raise AssertionError("a process still trains")


@pytest.mark.parametrize("dies", [False, True])
def test_processes_of_a_start_agree_on_its_name(dies):
    """The store keeps what those of earlier starts, whose number may differ, have written."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def one(rank, count):
        store = dist.TCPStore("127.0.0.1", server.port, wait_for_workers=False)
        return _name_of_start(dist.PrefixStore("x", store), rank, count)

    names = []
    with ThreadPoolExecutor(4) as pool:
        for count in (3, 2, 4, 4, 2):
            if dies:  # a process that has asked is killed
                server.set("x/question of 1", "nobody waits for the answer")
            found = set(pool.map(one, reversed(range(count)), [count] * count))
            assert len(found) == 1
            names += found
    assert len(set(names)) == 5


def gloo_threads():
    return [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]


def one_process(rank, folder, endings):
    for number, ending in enumerate(endings):
        store = f"file://{folder}/{number}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        with suppress(SystemExit), leaving_process_group():
            comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
            train_and_end(ending)
        assert not dist.is_initialized() and not gloo_threads()


def train_and_end(ending):
    network = DistributedDataParallel(torch.nn.Linear(2, 1))
    network(torch.ones(1, 2)).sum().backward()
    assert comm.all_gather(comm.get_rank()) == [0, 1] and gloo_threads()
    if ending:
        raise ending


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_no_thread_of_gloo_outlives_the_group(tmp_path):
    """One could free a tensor while Python ends, which aborts the process."""
    torch.multiprocessing.spawn(one_process, (tmp_path, [None, SystemExit(0)]), nprocs=2)


def test_an_error_does_not_wait_for_the_others(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(comm, "synchronize", lambda: done.append("waited"))
    for ending, expected in ((ValueError(), ["left"]), (SystemExit(0), ["waited", "left"])):
        done = []
        with pytest.raises(type(ending)), leaving_process_group():
            raise ending
        assert done == expected


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not started_by_torchrun()


def test_fewer_gpus_than_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "64")
    with (
        pytest.raises(ValueError, match="^LOCAL_RANK is 64, but .* GPUs are visible"),
        torchrun_processes("cuda"),
    ):
        pass
