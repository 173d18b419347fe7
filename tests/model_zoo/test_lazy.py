"""LazyConfig twins: the network of the YAML to the bit, whose every argument can be changed."""

import importlib.util
import json
import pickle
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2 import config
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_argument_parser, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.solver import build_lr_scheduler
from omegaconf import OmegaConf
from torch import nn

import d2_deformable.model_zoo.calls as calls_module
from d2_deformable import model_zoo
from d2_deformable.engine import build_optimizer
from d2_deformable.engine.lazy import load_records
from d2_deformable.layers import DeformConv2d
from d2_deformable.model_zoo import lazy_config
from d2_deformable.model_zoo.calls import lazy_tree
from yamls import CONFIGS, MODELS, QUICK, load, relative

TWINS = sorted(CONFIGS.rglob("*.py"))
RFCN = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.py"
SMALL = [p for p in QUICK if "warped_shapes" in p.stem]
FULL = [
    CONFIGS / f"{name}{suffix}.yaml"
    for name, suffixes in {
        "VOC-Detection/rfcn_R_101": ("", "_dconv3_dpool"),
        "VOC-Detection/faster_rcnn_R_101": ("", "_dconv3_dpool"),
        "VOC-Detection/class_aware_rpn_R_101": ("", "_dconv3"),
        "VOC-SemanticSegmentation/deeplab_R_101": ("", "_dconv3"),
        "COCO-Detection/faster_rcnn_R_50_FPN_1x": ("", "_dconv_c3-c5_dpool", "_mdpool_mmdet"),
        "COCO-Detection/mask_rcnn_R_50_FPN_1x": ("", "_mdconv_c3-c5_dpool"),
        "COCO-Detection/cascade_rcnn_R_50_FPN_1x": ("", "_dconv_c3-c5"),
        "COCO-Detection/rfcn_AIR": ("", "_dconv3_dpool"),
    }.items()
    for suffix in suffixes
]


def shapes(model):
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


def outputs(model, size):
    torch.manual_seed(1)
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model.eval()([{"image": image, "height": size[0], "width": size[1]}])
    fields = output["instances"].get_fields() if "instances" in output else output
    return {k: getattr(v, "tensor", v) for k, v in fields.items()}


def same_outputs(cfg, size):
    """The model of the YAML, its twin with the same weights, and what both say."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    theirs, twin = build_model(cfg), instantiate(lazy_config(cfg).model)
    for module in theirs.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)  # else a hundred random layers overflow
    assert shapes(twin) == shapes(theirs) and str(twin) == str(theirs)
    assert [n for n, _ in twin.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (twin, theirs)]
    assert trainable[0] == trainable[1]
    twin.load_state_dict(theirs.state_dict())
    expected, actual = outputs(theirs, size), outputs(twin, size)
    assert actual.keys() == expected.keys() and all(len(v) for v in expected.values())
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_small_networks(path):
    same_outputs(load(path), (64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_networks_of_full_size(path):
    same_outputs(load(path), (128, 160))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_every_yaml_has_a_twin(path):
    cfg = load(path)
    tree = lazy_tree(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), cfg)
    with torch.device("meta"):
        twin = instantiate(tree)
        theirs = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    assert shapes(twin) == shapes(theirs) and str(twin) == str(theirs)


def test_building_it_changes_nothing():
    """Neither the classes whose calls are noted nor the random numbers that follow."""
    classes = list(calls_module._with_subclasses(calls_module.CLASSES))
    before = [vars(cls).get("__init__") for cls in classes]
    explicit, state = config.config._get_args_from_config, torch.get_rng_state()
    lazy_config(RFCN)
    with pytest.raises(ZeroDivisionError):
        lazy_tree(lambda: 1 / 0)
    assert [vars(cls).get("__init__") for cls in classes] == before
    assert config.config._get_args_from_config is explicit
    assert torch.equal(torch.get_rng_state(), state)


# ---- Overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, check",
    [
        (
            ["model.roi_heads.num_classes=3"],
            lambda m: m.roi_heads.box_predictor.cls_score.score_maps.out_channels == 4 * 49,
        ),
        (
            ["model.backbone.deform_num_layers=5", "model.backbone.modulated=True"],
            lambda m: sum(isinstance(x, DeformConv2d) and x.modulated for x in m.modules()) == 5,
        ),
        (
            ["model.proposal_generator.anchor_generator.sizes=[[32]]"],
            lambda m: m.proposal_generator.anchor_generator.num_cell_anchors == [3],
        ),
    ],
    ids=["classes", "layers", "anchors"],
)
def test_overrides_and_saving(tmp_path, overrides, check):
    cfg = LazyConfig.load(str(RFCN))
    assert not check(instantiate(cfg.model))
    LazyConfig.apply_overrides(cfg, overrides)
    model = instantiate(cfg.model)
    assert check(model)
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    assert [file.name for file in tmp_path.iterdir()] == ["saved.yaml"], "no pickle beside it"
    again = LazyConfig.load(str(tmp_path / "saved.yaml"))
    assert OmegaConf.to_container(again.train) == OmegaConf.to_container(cfg.train)
    assert shapes(instantiate(again.model)) == shapes(model)


def test_classes_of_all_stages_follow():
    cfg = lazy_config(CONFIGS / "COCO-Detection/cascade_rcnn_R_50_FPN_1x.yaml").model
    cfg.roi_heads.num_classes = 5
    assert [p.num_classes for p in cfg.roi_heads.box_predictors] == [5, 5, 5]
    mask = lazy_config(CONFIGS / "COCO-Detection/mask_rcnn_R_50_FPN_1x.yaml").model.roi_heads
    mask.num_classes = 5
    assert (mask.box_predictor.num_classes, mask.mask_head.num_classes) == (5, 5)


class Odd(nn.Module):
    def __init__(self, part, second=None):
        super().__init__()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Odd(object()), "Odd.part is of type object, which a LazyCall cannot express"),
        (lambda: Odd([{"a": torch.zeros(1)}]), "Odd.part.0.a is of type Tensor, which a LazyCall"),
        (lambda: Odd(load()), "Odd.cfg is of type CfgNode"),
        (lambda: Odd(nn.Sequential(nn.ReLU())), "Odd.part takes positional arguments"),
        (lambda: Odd(lambda x: x), "Odd.part is <lambda>.*no name to find it"),
        (lambda: (lambda x: Odd(x, x))(nn.ReLU()), "Odd.second is a module that stands elsewhere"),
    ],
)
def test_what_cannot_be_expressed(build, message):
    with pytest.raises(ValueError, match=message):
        lazy_tree(build)


# ---- The other parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", TWINS, ids=relative)
def test_twins_are_of_one_definition(path):
    assert path.with_suffix(".yaml") in MODELS
    assert path.read_text() == RFCN.read_text()
    assert model_zoo.get_config_file(relative(path)) == str(path)


def test_by_name():
    trained = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.py"  # there is but the YAML
    cfg = model_zoo.get_config(trained, trained=True)
    assert cfg.train.init_checkpoint == model_zoo.get_checkpoint_url(trained)
    model = model_zoo.get(trained, trained=True, device="cpu")
    same = model_zoo.get(trained.replace(".py", ".yaml"), trained=True, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    with pytest.raises(RuntimeError, match="quick/none.yaml is not available"):
        model_zoo.get_config("quick/none.py")


def rates(optimizer, model):
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: {k: group[k] for k in ("lr", "momentum", "nesterov", "weight_decay")}
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize(
    "name", ["quick/warped_shapes_rfcn_R_18_dconv3_dpool", "VOC-Detection/rfcn_R_50_dconv3"]
)
def test_optimizer_and_schedule(name):
    cfg = model_zoo.get_config(f"{name}.yaml")
    lazy = lazy_config(cfg)
    with torch.device("meta"):
        model = instantiate(lazy.model)
    theirs = build_optimizer(cfg, model)
    lazy.optimizer.params.model = model
    ours = instantiate(lazy.optimizer)
    assert rates(ours, model) == rates(theirs, model)
    assert type(ours).__name__ == type(theirs).__name__
    schedule, multiplier = build_lr_scheduler(cfg, theirs), instantiate(lazy.lr_multiplier)
    for where in (0.0, 0.01, 0.3, 0.82, 0.99):
        assert multiplier(where) == schedule._multiplier(where)


def test_clipping():
    cfg = lazy_config(RFCN)
    layer = nn.Linear(1, 1, bias=False)
    cfg.optimizer.params.model = layer
    cfg.optimizer.params.lr_multipliers = []
    cfg.optimizer.update(lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer = instantiate(cfg.optimizer)
    before = layer.weight.item()
    layer.weight.grad = torch.tensor([[1e6]])
    optimizer.step()
    assert before - layer.weight.item() == pytest.approx(10.0, rel=1e-4)


def test_two_rows_of_other_settings():
    cfg = lazy_config(CONFIGS / "VOC-Detection/rfcn_R_101.yaml")
    assert cfg.dataloader.train.dataset.drop_difficult
    assert cfg.dataloader.evaluator.voc_metric == "07"
    cfg = load(RFCN.with_suffix(".yaml"))
    cfg.DATASETS.TEST = ()
    assert set(lazy_config(cfg).dataloader) == {"train"}
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is RepeatFactor.*TrainingSampler only"):
        lazy_config(cfg)


# Comes with Detectron2's repository and with what pip builds of it, not with version 0.5 of PyPI.
SCRIPT = Path(detectron2.__file__).parents[1] / "tools/lazyconfig_train_net.py"
TINY = """
train.max_iter=2 train.log_period=1 train.device=cpu train.eval_period=0
dataloader.train.total_batch_size=2
dataloader.train.dataset.custom.warped_shapes_train.NUM_IMAGES=4
dataloader.test.dataset.custom.warped_shapes_val.NUM_IMAGES=2
model.proposal_generator.post_nms_topk=[20,20]
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The overrides of a short training into a temporary folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return [*TINY.split(), f"train.output_dir={tmp_path}/output"]


@pytest.mark.skipif(not SCRIPT.exists(), reason="this Detectron2 came without its tools/")
def test_detectron2s_script_trains_it(tiny, tmp_path):
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(default_argument_parser().parse_args(["--config-file", str(RFCN), *tiny]))
    metrics = [json.loads(s) for s in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert metrics[0]["total_loss"] > 0
    assert {"bbox/AP", "voc/AP50"} <= {key for line in metrics for key in line}
    assert (tmp_path / "output/model_final.pth").is_file()


def test_trains_and_tests(tiny):
    """The same steps, for a Detectron2 without that script."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(RFCN)), tiny)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))])
    before = model.roi_heads.box_predictor.cls_score.score_maps.weight.clone()
    trainer.train(0, cfg.train.max_iter)
    assert not torch.equal(model.roi_heads.box_predictor.cls_score.score_maps.weight, before)
    loader = instantiate(cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    assert {"bbox", "voc"} <= results.keys() and len(loader.dataset) == 2


@pytest.mark.parametrize("drop_difficult", [False, True])
def test_proposals_do_not_run(drop_difficult, tmp_path):
    sign = tmp_path / "sign"

    class Hostile:
        def __reduce__(self):
            return sign.touch, ()

    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps({"ids": [], "boxes": Hostile()}))
    with pytest.raises(ValueError, match=r"proposals.pkl .* it names pathlib\."):
        load_records(["none"], proposal_files=[str(file)], drop_difficult=drop_difficult)
    assert not sign.exists()
