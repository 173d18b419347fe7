"""Convert checkpoints of other projects and layouts into weights of this package's models."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ...modeling import build_model
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
    """Convert the file `source` of another project and write it atomically to `target`.

    If the model computes the same as the source only with other settings than those of cfg, a YAML
    with these settings and MODEL.WEIGHTS is written beside `target`, under its name. It is also
    written if a YAML of that name exists, which would belong to other weights.

    Args:
        kind: the project that wrote the file, a key of CONVERTERS.
        source: a path, or a URL that Detectron2's PathManager understands.
        target: a .pth or .safetensors.
        cfg: config of the model that the weights are for; it is built on the CPU.
        trust_pickle: see `read_weights`.
        keep: prefixes of the model's tensors that keep their initial values, see `Conversion`.
        config_file: the file that cfg was read from, which becomes `_BASE_` of the YAML; without
            it the YAML holds all keys of cfg.

    Returns:
        the `Conversion`: where each tensor went, and the names of the files written.

    Raises:
        FileFormatError: `source` is damaged or cannot be read safely.
        ConversionError: `kind` is unknown, `source` is from another network than that of cfg, cfg
            builds no model, or `target` or its YAML would replace `source` or `config_file`.
        OSError: a file or folder does not exist.
    """
    target = Path(target)
    if "://" in str(source):
        source = PathManager.get_local_path(str(source))
    if kind not in CONVERTERS:
        raise ConversionError(f"unknown kind {kind!r}: choose one of {', '.join(CONVERTERS)}")
    check_target(target)
    settings_file = target.with_suffix(".yaml")
    _check_not_replaced(source, target)
    _check_not_replaced(config_file, settings_file)
    content = read_content(source, trust_pickle=trust_pickle)
    weights = weights_in(source, content)
    metadata = content.get("meta")
    metadata = metadata if isinstance(metadata, Mapping) else None
    conversion = Conversion(weights, _model_tensors(cfg), keep, metadata)
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
    """Refuse to overwrite an input. A YAML written over its own `_BASE_` would build on itself."""
    if original is not None and target.exists() and target.samefile(original):
        raise ConversionError(f"{target} is an input and would be overwritten: choose another OUT")


def _model_tensors(cfg: CfgNode) -> dict:
    """Tensors of the model of cfg, with initial values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg).state_dict()
    except ValueError as error:
        raise ConversionError(" ".join(str(error).split())) from error
