"""Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin.

Importing it registers the models and the d2_deformable:// paths with Detectron2, and nothing more.
Import the other subpackages explicitly; only `predict` and `Predictor` are here as well.
`d2_deformable.ops` also works without Detectron2.
"""

__version__ = "0.1.0"
__all__ = ["Predictor", "add_deformable_config", "predict"]

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise

    def __getattr__(name):
        if name in ("add_deformable_config", "model_zoo", "modeling"):
            from . import needs_detectron2  # noqa: F401
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
else:
    from . import model_zoo, modeling
    from .config import add_deformable_config

    def __getattr__(name):
        if name in ("Predictor", "predict"):  # imported on first use, since they need everything
            from . import inference

            return getattr(inference, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
