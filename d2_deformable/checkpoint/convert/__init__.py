"""Checkpoints of other projects and layouts as weights of this package's models."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from ..files import check_target, read_content, weights_in, write_weights
from . import detectron2, mmdet, mxnet, timm, torchvision
from .conversion import Conversion, ConversionError
from .settings import value_of, write_yaml

__all__ = ["CONVERTERS", "Conversion", "ConversionError", "convert_checkpoint"]

CONVERTERS = {
    "detectron2": detectron2.convert,
    "torchvision": torchvision.convert,
    "timm": timm.convert,
    "mmdet": mmdet.convert,
    "mmdetection": mmdet.convert,
    "mxnet": mxnet.convert,
}


def convert_checkpoint(
    kind, source, target, cfg: CfgNode, *, trust_pickle=False, keep=(), config_file=None
) -> Conversion:
    """Convert the file `source` of another project and write it to `target`, whole or not at all.

    Where the model computes what the source did only with other values of some keys than those of
    cfg, a YAML of these and of MODEL.WEIGHTS is written beside it, named as `target`. So it is
    where a YAML of that name lies there already, which would be of other weights.

    Args:
        kind: of CONVERTERS, the project that wrote the file.
        source: a path, or a URL that Detectron2's PathManager understands.
        target: a .pth or .safetensors.
        cfg: of the model that the weights are for; it is built on the CPU.
        trust_pickle: see `read_weights`.
        keep: beginnings of names of the model that keep their initial values, see `Conversion`.
        config_file: that cfg came from, as `_BASE_` of the YAML; without it the YAML holds all
            keys of cfg.

    Returns:
        the account of both sides, with the names of the files written.

    Raises:
        FileFormatError: `source` is damaged or cannot be read safely.
        ConversionError: it is of another network than cfg's, cfg builds no model, no such kind, or
            `target` or its YAML is the source or `config_file`.
        OSError: no such file or folder.
    """
    target = Path(target)
    if "://" in str(source):
        source = PathManager.get_local_path(str(source))
    if kind not in CONVERTERS:
        raise ConversionError(f"no kind of file {kind!r}: choose one of {', '.join(CONVERTERS)}")
    check_target(target)
    settings_file = target.with_suffix(".yaml")
    _check_not_replaced(source, target)
    _check_not_replaced(config_file, settings_file)
    content = read_content(source, trust_pickle=trust_pickle)
    weights = weights_in(source, content)
    metadata = content.get("meta")
    metadata = metadata if isinstance(metadata, Mapping) else None
    conversion = Conversion(weights, _shapes(cfg), keep, metadata)
    conversion.file = Path(source)
    try:
        conversion.run(CONVERTERS[kind], cfg)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from error
    write_weights(conversion.weights, target)
    conversion.written.append(target)
    differs = any(value_of(cfg, key) != value for key, value in conversion.settings.items())
    if differs or settings_file.exists():
        conversion.written.append(write_yaml(conversion.settings, target, cfg, config_file))
    return conversion


def _check_not_replaced(original, target: Path) -> None:
    """Refuse to write over what was given; a config would then build on itself."""
    if original is not None and target.exists() and target.samefile(original):
        raise ConversionError(f"{target} was given and would be written over: name OUT otherwise")


def _shapes(cfg: CfgNode) -> dict:
    """The tensors of cfg's model."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg).state_dict()
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        raise ConversionError(
            f"the config builds no model ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
