"""Import this module to raise an error that says how to install Detectron2 where it is missing."""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "d2_deformable needs Detectron2, which is not installed, for all but d2_deformable.ops, "
        "layers and integrations: run `d2-deformable install-detectron2`"
    ) from error
