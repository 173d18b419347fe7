"""Differences between Detectron2 0.5 and main, and between their builds."""

# The versions on which every name that `require_private` checks was tested.
TESTED = "Detectron2 0.5 and main at 02b5c4e"


def has_compiled_d2() -> bool:
    """Return True if Detectron2's compiled extension exists and is not a placeholder."""
    try:
        from detectron2 import _C

        _C.COCOevalEvaluateImages  # noqa: B018  a placeholder raises on every use
    except (ImportError, AttributeError):
        return False
    return True


def require_private(owner, *names: str) -> None:
    """Check that a module, class or object of Detectron2 has private names that we build on.

    Without the check, a method that a new version renamed would silently no longer be overridden.

    Raises:
        ImportError: a name is missing.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise ImportError(
            f"{where} has no {', '.join(missing)}, which d2_deformable builds on: use a version on "
            f"which it was tested, {TESTED}"
        )
