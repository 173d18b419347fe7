"""Import this module to raise an error that says how to install Detectron2 where it is missing."""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "d2_deformable's models and config need Detectron2, which is not installed: run "
        "`python tools/install_detectron2.py` in the repository. d2_deformable.ops works without it"
    ) from error
