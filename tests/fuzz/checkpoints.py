"""Any bytes as a file of weights: each reader gives weights, or one sentence."""

import resource
import tempfile
import time
from pathlib import Path

import torch
from checkpoint import hostile

from d2_deformable.checkpoint import SafeCheckpointer, StrictCheckpointer, read_weights
from d2_deformable.checkpoint.convert import CONVERTERS
from d2_deformable.checkpoint.convert.conversion import Conversion
from d2_deformable.checkpoint.files import read_content, weights_in
from d2_deformable.checkpoint.mxnet_params import read_mxnet_params
from d2_deformable.config import read_config
from d2_deformable.engine.checkpoint_files import damage
from d2_deformable.utils.restricted_pickle import read_pickle

SEEDS = [*hostile.good_files().values(), *hostile.odd_state_dicts().values()]
SEEDS += [*hostile.inconsistent().values(), *hostile.programs("/nowhere/sign").values()]
SEEDS.append(
    hostile.torch_bytes(
        {
            "state_dict": hostile.WEIGHTS,
            "meta": {"config": "model = dict(type='FasterRCNN', backbone=dict(depth=50))"},
        }
    )
)
SECONDS = 20
MEMORY = 2**20  # KiB that the process may take in addition to its start

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz")
_FILE = Path(_FOLDER.name) / "model.pth"
_CFG = read_config(Path(__file__).parents[2] / "configs/quick/warped_shapes_rfcn_R_18.yaml")


def _network():
    return torch.nn.Sequential(torch.nn.Conv2d(6, 4, 1), torch.nn.BatchNorm2d(4))


def _convert(kind):
    def convert(file):
        content = read_content(file)
        weights, meta = weights_in(file, content), content.get("meta")
        meta = meta if isinstance(meta, dict) else None
        conversion = Conversion(weights, _network().state_dict(), (), meta)
        conversion.file = file
        conversion.run(CONVERTERS[kind], _CFG)

    return convert


READERS = [
    read_weights,
    read_content,
    read_pickle,
    read_mxnet_params,
    damage,
    lambda file: SafeCheckpointer(_network()).load(str(file)),
    lambda file: StrictCheckpointer(_network()).load(str(file)),
]
READERS += [_convert(kind) for kind in CONVERTERS]
_START = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_input(data: bytes) -> None:
    _FILE.write_bytes(data)
    for reader in READERS:
        started = time.monotonic()
        try:
            reader(_FILE)
        except ValueError as error:
            assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"
        assert time.monotonic() - started < SECONDS, "a hang"
    assert [path.name for path in Path(_FOLDER.name).iterdir()] == [_FILE.name]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - _START
    assert grown < MEMORY, f"{grown} KiB of memory"
