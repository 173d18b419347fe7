"""Differences between Detectron2 0.5 and main, and between their builds."""


def has_compiled_d2() -> bool:
    """Return True if Detectron2's compiled extension exists and is not a placeholder."""
    try:
        from detectron2 import _C

        _C.COCOevalEvaluateImages  # noqa: B018  a placeholder raises on every use
    except (ImportError, AttributeError):
        return False
    return True
