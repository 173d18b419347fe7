"""Configs and models by name: the functions of `detectron2.model_zoo`, over this package's YAMLs.

from d2_deformable import model_zoo

model = model_zoo.get("VOC-Detection/rfcn_R_101_dconv3_dpool.yaml")
cfg = model_zoo.get_config("model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", trained=True)
"""

from difflib import get_close_matches

from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from ..analysis.complexity import count_parameters_of
from ..checkpoint import SafeCheckpointer, StrictCheckpointer
from ..config import read_config
from ..engine.device import fall_back_to_cpu, why_not_cuda
from ..modeling import build_model
from ..modeling.meta_arch.predicates import is_missing, is_segmentor
from .catalog import PREFIX, NotInModelZooError, checkpoints, get_checkpoint_url
from .index import CONFIGS, fetch, is_packaged


def list_configs() -> list[str]:
    """Names of all networks' configs, as the other functions take them, sorted.

    They are paths relative to configs/, except the Base-*.yaml that configs build on, and the
    configs of registered index files.
    """
    ours = [path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")] if CONFIGS else []
    names = {path.as_posix() for path in ours if not path.name.startswith("Base-")}
    return sorted(names | {entry.config for entry in checkpoints().values()})


def find_config(name: str) -> str:
    """Find the config that a user means, for commands.

    Args:
        name: as in `list_configs`, or the end of it from a folder on ("rfcn_R_50_dconv3"), with or
            without ".yaml". Where several configs end so but only one of them has a checkpoint, it
            is that one.

    Returns:
        its name in `list_configs`.

    Raises:
        NotInModelZooError: no config, or several; the message lists them, or the nearest names.
    """
    short = {config.removesuffix(".yaml"): config for config in list_configs()}
    name = name.removesuffix(".yaml")
    if name in short:
        return short[name]
    found = [known for known in short if known.endswith(f"/{name}")]
    trained = {entry.config for entry in checkpoints().values()}
    with_checkpoint = [known for known in found if short[known] in trained]
    if len(found) == 1 or len(with_checkpoint) == 1:
        return short[(with_checkpoint or found)[0]]
    if found:
        raise NotInModelZooError(f"{name} may be {' or '.join(found)}: give one of these names")
    stems = [known.rpartition("/")[2] for known in short]
    near = [
        known
        for end in get_close_matches(name, [*short, *stems])
        for known in short
        if f"/{known}".endswith(f"/{end}")
    ]
    near = list(dict.fromkeys(near))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`d2-deformable models` lists all"
    raise NotInModelZooError(f"there is no config {name} in the model zoo; {hint}")


def get_config_file(config_path: str) -> str:
    """The path of a config.

    Args:
        config_path: relative to configs/, e.g. "VOC-Detection/rfcn_R_101_dconv3_dpool.yaml", or
            from a registered index.

    Raises:
        NotInModelZooError: there is no such config.
    """
    if CONFIGS and is_packaged(config_path):
        return str(CONFIGS / config_path)
    for entry in checkpoints().values():
        if entry.config == config_path and entry.config_file:
            return fetch(entry.config_file)
    raise NotInModelZooError(
        f"{config_path} is not available in d2_deformable's model zoo; "
        "d2_deformable.model_zoo.list_configs() lists what is"
    )


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """Load a config: Detectron2's defaults and this package's, overridden by the YAML; for a .py,
    the LazyConfig.

    Args:
        config_path: see `get_config_file`.
        trained: set MODEL.WEIGHTS (train.init_checkpoint of a LazyConfig) to the checkpoint that
            was trained with the config. Otherwise it stays as in the config: mostly ImageNet
            weights of the backbone.

    Raises:
        NotInModelZooError: there is no such config, or with `trained` no checkpoint for it.
        ValueError: a YAML of a registered index has a wrong key or value.
    """
    file = get_config_file(config_path)
    url = get_checkpoint_url(config_path) if trained else None
    if file.endswith(".py"):
        cfg = LazyConfig.load(file)
        if trained:
            cfg.train.init_checkpoint = url
        return cfg
    cfg = read_config(file)
    if trained:
        cfg.MODEL.WEIGHTS = url
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a config and load its weights; like Detectron2's, in training mode.

    Args:
        config_path, trained: see `get_config`. A trained checkpoint must fit the model completely.
        device: default: the config's, or the CPU if that is a GPU that cannot be used.

    Raises:
        NotInModelZooError, ValueError: see `get_config`.
        OSError: the checkpoint is missing, or its sha256 is not that of the index.
    """
    cfg = get_config(config_path, trained)
    if isinstance(cfg, CfgNode):
        if device is None:
            fall_back_to_cpu(cfg)
        else:
            cfg.MODEL.DEVICE = str(device)
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        if device is None:
            device = "cpu" if why_not_cuda() else cfg.train.device
        model, weights = instantiate(cfg.model).to(device), cfg.train.init_checkpoint
    (StrictCheckpointer if trained else SafeCheckpointer)(model).load(weights)
    return model


def summary(config_path: str, parameters: bool = False) -> dict:
    """Describe the network of a YAML, with values that JSON can hold.

    Args:
        config_path: as in `list_configs`.
        parameters: count the network's parameters, for which it is built without memory (0.1 s).

    Returns:
        {"name", "task", "parameters" (None if not counted, or if Detectron2 lacks the network),
        "test_sizes" (shorter sides of the images that it is tested on; 0 is the size of the image),
        "max_size" (limit of the longer side), "test_sets", "checkpoint" (its MODEL.WEIGHTS or
        None), "AP" (of the checkpoint, where its index has it)}.

    Raises:
        NotInModelZooError, ValueError: see `get_config`.
    """
    cfg = get_config(config_path)
    trained = {entry.config: (name, entry.ap) for name, entry in checkpoints().items()}
    name, ap = trained.get(config_path, (None, None))
    multiscale = cfg.TEST.AUG.ENABLED
    return {
        "name": config_path,
        "task": _task(cfg),
        "parameters": count_parameters_of(cfg) if parameters and not is_missing(cfg) else None,
        "test_sizes": list(cfg.TEST.AUG.MIN_SIZES) if multiscale else [cfg.INPUT.MIN_SIZE_TEST],
        "max_size": cfg.TEST.AUG.MAX_SIZE if multiscale else cfg.INPUT.MAX_SIZE_TEST,
        "test_sets": list(cfg.DATASETS.TEST),
        "checkpoint": name and PREFIX + name,
        "AP": ap,
    }


def _task(cfg: CfgNode) -> str:
    if is_segmentor(cfg):
        return "semantic segmentation"
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return "proposals"
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        return "panoptic segmentation"
    if cfg.MODEL.KEYPOINT_ON:
        return "keypoints"
    return "instance segmentation" if cfg.MODEL.MASK_ON else "detection"
