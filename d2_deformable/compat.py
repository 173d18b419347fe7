"""What differs between Detectron2 0.5 and main, and between their builds.

Imports nothing but the standard library at its top: `tools/install_detectron2.py` runs this file
before Detectron2 or the operators are there.
"""

import importlib.metadata
import json


def has_compiled_d2() -> bool:
    """Whether Detectron2's compiled extension is there, and not absent or a mere placeholder."""
    try:
        from detectron2 import _C

        _C.COCOevalEvaluateImages  # noqa: B018  a placeholder raises on every use
    except (ImportError, AttributeError):
        return False
    return True


def detectron2_source() -> str:
    """Which Detectron2 this Python imports, and where it came from, in words.

    Raises:
        ImportError: there is none.
    """
    import detectron2

    name = f"Detectron2 {detectron2.__version__}"
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return f"{name}, not installed by pip"
    if "+d2deformable" in distribution.version:
        return distribution.metadata["Summary"]
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f"{name} from {origin['url']} at {origin['vcs_info']['commit_id'][:8]}"
    return f"{name} of unknown origin"
