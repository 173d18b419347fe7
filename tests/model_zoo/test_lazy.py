"""LazyConfig twins equal their YAMLs to the bit, and every argument can be changed."""

import importlib.util
import json
import pickle
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_argument_parser, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from d2_deformable import model_zoo
from d2_deformable.data import DatasetMapper, load_records
from d2_deformable.engine import build_optimizer
from d2_deformable.layers import DeformConv2d
from yamls import CONFIGS, MODELS, load, relative

TWINS = sorted(p for p in CONFIGS.rglob("*.py") if p.relative_to(CONFIGS).parts[0] != "lazy")
RFCN = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.py"
small = [p for p in TWINS if "R_18" in p.stem]
twins = pytest.mark.parametrize("path", TWINS, ids=relative)


def shapes(model):
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


def plain(value):
    """Convert a module's settings to comparable values: sequences to lists, objects to fields."""
    if isinstance(value, Matcher | Box2BoxTransform):
        return type(value).__name__, plain(vars(value))
    if isinstance(value, dict | DictConfig):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | ListConfig):
        return [plain(item) for item in value]
    if isinstance(value, int | float | str | None):
        return value
    return type(value).__name__


def settings(model):
    """{module: {attribute: value}} of all attributes except parameters, buffers and modules."""
    found = {}
    for name, module in model.named_modules():
        found[name] = plain({k: v for k, v in vars(module).items() if not k.startswith("_")})
        if isinstance(module, FastRCNNOutputLayers):  # losses that it does not name have weight 1
            found[name]["loss_weight"].setdefault("loss_cls", 1.0)
    return found


@twins
def test_same_network(path):
    cfg = load(path.with_suffix(".yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        theirs, twin = build_model(cfg), instantiate(LazyConfig.load(str(path)).model)
    assert shapes(twin) == shapes(theirs) and str(twin) == str(theirs)
    assert [n for n, _ in twin.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (twin, theirs)]
    assert trainable[0] == trainable[1]
    assert settings(twin) == settings(theirs)


def batch(cfg, size):
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    record = {"image": image, "height": size[0], "width": size[1]}
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return [record | {"sem_seg": torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, size)}]
    objects = Instances(size)
    objects.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 70], [20, 5, 90, 60]]))
    objects.gt_classes = torch.tensor([0, 3])
    if cfg.MODEL.MASK_ON:
        corners = objects.gt_boxes.tensor.numpy()[:, [0, 1, 2, 1, 2, 3]]
        objects.gt_masks = PolygonMasks([[polygon] for polygon in corners])
    return [record | {"instances": objects}]


def outputs(model, inputs):
    with torch.no_grad():
        (output,) = model.eval()(inputs)
    fields = output["instances"].get_fields() if "instances" in output else output
    return {k: getattr(v, "tensor", v) for k, v in fields.items()}


def losses(model, inputs):
    torch.manual_seed(2)  # for sampling
    with EventStorage():
        return model.train()(inputs)


def assert_same_numbers(path, size):
    """Compare outputs and losses of the YAML's network and of its twin with the same weights."""
    torch.manual_seed(1)
    cfg, lazy = load(path.with_suffix(".yaml")), LazyConfig.load(str(path))
    cfg.MODEL.DEVICE = "cpu"
    theirs, twin = build_model(cfg), instantiate(lazy.model)
    for module in theirs.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)  # otherwise a hundred random layers overflow
    twin.load_state_dict(theirs.state_dict())
    inputs = batch(cfg, size)
    for compute in (losses, outputs):  # training changes the statistics of both equally
        expected, actual = compute(theirs, inputs), compute(twin, inputs)
        assert actual.keys() == expected.keys() and expected
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name
    assert all(len(v) for v in expected.values())


@pytest.mark.parametrize("path", small, ids=relative)
def test_same_outputs_and_losses(path):
    assert_same_numbers(path, (64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in TWINS if p not in small], ids=relative)
def test_same_outputs_and_losses_of_full_size(path):
    assert_same_numbers(path, (128, 160))


@twins
def test_same_optimizer_and_schedule(path):
    cfg, lazy = load(path.with_suffix(".yaml")), LazyConfig.load(str(path))
    with torch.device("meta"):
        model = instantiate(lazy.model)
    theirs = build_optimizer(cfg, model)
    lazy.optimizer.params.model = model
    ours = instantiate(lazy.optimizer)
    assert rates(ours, model) == rates(theirs, model)
    assert ("clip_norm" in lazy.optimizer) == cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    if "clip_norm" in lazy.optimizer:
        clip = cfg.SOLVER.CLIP_GRADIENTS
        clipped = ("norm", lazy.optimizer.clip_norm, 2.0)
        assert clipped == (clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE)
    schedule, multiplier = build_lr_scheduler(cfg, theirs), instantiate(lazy.lr_multiplier)
    for step in (0, 1, 99, 100, 999, 1000, *(s + d for s in cfg.SOLVER.STEPS for d in (-1, 0))):
        where = step / cfg.SOLVER.MAX_ITER
        assert multiplier(where) == schedule._multiplier(where)
    train = lazy.train
    assert (train.max_iter, train.init_checkpoint) == (cfg.SOLVER.MAX_ITER, cfg.MODEL.WEIGHTS)
    assert train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert (train.eval_period, train.get("seed", -1)) == (cfg.TEST.EVAL_PERIOD, cfg.SEED)
    assert (train.amp.enabled, train.output_dir) == (cfg.SOLVER.AMP.ENABLED, cfg.OUTPUT_DIR)


def mapping(mapper):
    """Settings of a DatasetMapper, including those of its augmentations."""
    augmentations = [(type(aug).__name__, plain(vars(aug))) for aug in mapper.augmentations.augs]
    return plain(vars(mapper)) | {"augmentations": augmentations}


@twins
def test_same_data(path):
    cfg, lazy = load(path.with_suffix(".yaml")), LazyConfig.load(str(path)).dataloader
    train, test, evaluator = lazy.train, lazy.test, lazy.evaluator
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert train.num_workers == test.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert train.dataset.drop_difficult == cfg.INPUT.DROP_DIFFICULT
    for loader, split in ((train, "TRAIN"), (test, "TEST")):
        assert list(loader.dataset.names) == list(cfg.DATASETS[split])
        custom = {k: v for k, v in cfg.DATASETS.CUSTOM.items() if k in loader.dataset.names}
        assert plain(loader.dataset.get("custom", {})) == plain(custom)
        assert mapping(instantiate(loader.mapper)) == mapping(DatasetMapper(cfg, split == "TRAIN"))
    assert [evaluator.dataset_name] == list(cfg.DATASETS.TEST)
    assert evaluator.voc_metric == cfg.TEST.VOC_METRIC
    assert evaluator.get("sem_seg_resolution", "full") == cfg.TEST.SEM_SEG_RESOLUTION
    assert evaluator.get("masks", False) == cfg.MODEL.MASK_ON
    if evaluator.get("sem_seg_resolution") is None:
        assert evaluator.max_dets_per_image == cfg.TEST.DETECTIONS_PER_IMAGE


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
    assert [file.name for file in tmp_path.iterdir()] == ["saved.yaml"], "no pickle next to it"
    again = LazyConfig.load(str(tmp_path / "saved.yaml"))
    assert OmegaConf.to_container(again.train) == OmegaConf.to_container(cfg.train)
    assert shapes(instantiate(again.model)) == shapes(model)


def test_classes_of_all_heads_follow():
    heads = model_zoo.get_config("COCO-Detection/mask_rcnn_R_50_FPN_1x.py").model.roi_heads
    heads.num_classes = 5
    assert (heads.box_predictor.num_classes, heads.mask_head.num_classes) == (5, 5)


# ---- The other parts -----------------------------------------------------------------------------


@twins
def test_twins_by_name(path):
    assert path.with_suffix(".yaml") in MODELS
    cfg = model_zoo.get_config(relative(path))
    assert set(cfg) == {"model", "optimizer", "lr_multiplier", "dataloader", "train"}


def test_by_name():
    trained = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.py"
    cfg = model_zoo.get_config(trained, trained=True)
    assert cfg.train.init_checkpoint == model_zoo.get_checkpoint_url(trained)
    model = model_zoo.get(trained, trained=True, device="cpu")
    same = model_zoo.get(trained.replace(".py", ".yaml"), trained=True, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    with pytest.raises(RuntimeError, match="rfcn_R_50.py is not available"):
        model_zoo.get_config("VOC-Detection/rfcn_R_50.py")  # it has only a YAML


def rates(optimizer, model):
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: {k: group[k] for k in ("lr", "momentum", "nesterov", "weight_decay")}
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_clipping():
    """The step equals that of Detectron2's optimizer, which clips each parameter by itself."""
    cfg = load(RFCN.with_suffix(".yaml"))
    steps = []
    for build in ("lazy", "cfg"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        if build == "lazy":
            optimizer = LazyConfig.load(str(RFCN)).optimizer
            optimizer.params.model = model
            optimizer.params.lr_multipliers = []
            optimizer = instantiate(optimizer)
        else:
            cfg.SOLVER.LR_MULTIPLIERS = []
            optimizer = build_optimizer(cfg, model)
        model.weight.grad, model.bias.grad = torch.full((2, 3), 1e6), torch.ones(2)
        before = model.weight.detach().clone()
        optimizer.step()
        steps.append([model.weight.detach().clone(), model.bias.detach().clone()])
        assert (before - model.weight).norm().item() == pytest.approx(10 * 0.02, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


# Comes with Detectron2's repository and with pip's builds of it, not with version 0.5 on PyPI.
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
    """Overrides for a short training run in a temporary folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return [*TINY.split(), f"train.output_dir={tmp_path}/output"]


@pytest.mark.skipif(not SCRIPT.exists(), reason="this Detectron2 has no tools/")
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
    """Runs the steps of that script, for a Detectron2 that comes without it."""
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
