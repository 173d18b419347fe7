"""What differs between Detectron2 0.5 and main, and between their builds."""


def has_compiled_d2() -> bool:
    """Whether Detectron2's compiled extension is there, and not absent or a mere placeholder."""
    try:
        from detectron2 import _C

        _C.COCOevalEvaluateImages  # noqa: B018  a placeholder raises on every use
    except (ImportError, AttributeError):
        return False
    return True
