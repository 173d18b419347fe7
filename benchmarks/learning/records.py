"""Records of finished runs, docs/results/<run>.json."""

import base64
import json
import math
import zlib
from pathlib import Path

import numpy as np

from d2_deformable.utils.files import replace_json

from .study import Run

RESULTS = Path("docs/results")


def path_of(root, run: Run) -> Path:
    return Path(root) / RESULTS / f"{run.name}.json"


def read(root, run: Run) -> dict | None:
    """Read the record of `run`; None if there is none, or if another command made it."""
    file = path_of(root, run)
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    return record if record["command"] == run.command else None


def write_json(file, content) -> None:
    """Write JSON atomically; NaN, which JSON does not support, becomes null."""
    replace_json(file, _finite(content), separators=(",", ":"))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pack(counts: dict[str, np.ndarray]) -> dict:
    """Encode integer arrays as text, for JSON files of a few KB."""
    packed = {}
    for name, array in counts.items():
        data = zlib.compress(np.ascontiguousarray(array, "<i4").tobytes(), 9)
        text = base64.b64encode(data).decode()
        packed[name] = {"shape": list(array.shape), "zlib_base64": text}
    return packed


def unpack(packed: dict) -> dict[str, np.ndarray]:
    """Decode the arrays encoded by `pack`."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(one["zlib_base64"])), "<i4").reshape(
            one["shape"]
        )
        for name, one in packed.items()
    }
