"""Any bytes as a YAML config: it is read and checked, or one sentence names the file or the key."""

import tempfile
import time
from pathlib import Path

from d2_deformable.config import read_config
from d2_deformable.engine import check_settings

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = [
    b"VERSION: 2\nSEED: 3\n",
    b"MODEL: {RESNETS: {DEFORM_NUM_LAYERS: 3, NORM: BN}, DEFORM_MODULES: [[head, {groups: 4}]]}\n",
    b"SOLVER: {BASE_LR: 0.01, STEPS: [10, 20], LR_MULTIPLIERS: [[offset, 0.1]], GAMMA: .nan}\n",
    b"INPUT: {FORMAT: BGR, MIN_SIZE_TRAIN: (480, 640), CROP: {TYPE: relative, SIZE: [0.9, 0.9]}}\n",
    b"DATASETS: {CUSTOM: {a: {FORMAT: coco, ROOT: x}}, TRAIN: (a,)}\n",
    b"TEST: {SOFT_NMS: {ENABLED: true}, AUG: {MIN_SIZES: [400]}, DETECTIONS_PER_IMAGE: 0}\n",
    b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b]\n",
    b"_BASE_: [config.yaml]\nSEED: 1\n",
    b"SEED: !!python/object/apply:os.system [touch sign]\n",
    b"? [a]\n: !!binary aGk=\n<<: {SEED: 1}\n",
    b"SEED: '" + b"-" * 5000 + b"1'\n",
    b"{a: " * 60 + b"1" + b"}" * 60,
]
SEEDS += [file.read_bytes() for file in sorted(CONFIGS.glob("quick/*.yaml"))]
SECONDS = 20

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz")
_FILE = Path(_FOLDER.name) / "config.yaml"


def one_input(data: bytes) -> None:
    # Files that are named in the data must not exist outside of the folder.
    _FILE.write_bytes(data.replace(b"://", b":"))
    started = time.monotonic()
    try:
        check_settings(read_config(_FILE))
    except (OSError, ValueError) as error:
        text = str(error)
        assert len(text) < 2000, f"a message of {len(text)} characters"
        assert text.isprintable(), text
    assert time.monotonic() - started < SECONDS, "a hang"
    assert [path.name for path in Path(_FOLDER.name).iterdir()] == [_FILE.name]
