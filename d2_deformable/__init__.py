"""Deformable Convolutional Networks (Dai et al. 2017) as a Detectron2 plugin.

Importing it registers the models and the d2_deformable:// paths with Detectron2, and nothing more.
Import the other subpackages explicitly; only `predict` and `Predictor` are here as well.
`ops`, `layers` and `integrations` also work without Detectron2.
"""

import os
import sys
import warnings

__version__ = "0.1.0"
__all__ = ["Predictor", "add_deformable_config", "predict"]

# While Python looks for the module of `python -m d2_deformable`, argv[0] is "-m".
_program = os.path.basename("".join(sys.argv[:1]))
if _program in ("d2-deformable", "-m", "train_net.py"):
    from .utils.process import end_with_torchrun as _end_with_torchrun
    from .utils.process import let_threads_sleep as _let_threads_sleep

    _let_threads_sleep()
    _end_with_torchrun()

try:
    import detectron2

    with warnings.catch_warnings():
        # fvcore and Detectron2 use torch.jit.script when they are imported; users cannot change it.
        warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)  # torch 2.14
        import detectron2.modeling  # before ours, which fails without the operators

        from . import model_zoo, modeling
        from .config import add_deformable_config
except Exception as error:
    # The command line starts all the same: `d2-deformable doctor` reports what is wrong, and other
    # commands raise it when they import what they need.
    is_command = _program in ("d2-deformable", "-m")
    without_detectron2 = isinstance(error, ModuleNotFoundError) and error.name == "detectron2"
    if not (without_detectron2 or is_command):
        raise


def __getattr__(name):
    if name in ("Predictor", "predict"):  # imported on first use, since they need everything
        from . import inference

        return getattr(inference, name)
    if name in ("add_deformable_config", "model_zoo", "modeling"):
        from . import needs_detectron2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
