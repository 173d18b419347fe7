"""Images per second and the wait for them, as scalars of a training."""

import json
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from d2_deformable.config import read_config
from d2_deformable.data import register_custom_datasets
from d2_deformable.engine import Trainer
from d2_deformable.engine.throughput import SCALARS, Throughput
from yamls import CONFIGS


def test_steps_without_a_time_have_no_throughput():
    hook = Throughput(6)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        storage.put_scalars(data_time=0.5)
        hook.after_step()
        assert not storage.histories().keys() & set(SCALARS)
        storage.step()
        storage.put_scalars(data_time=0.5, time=2.0)
        hook.after_step()
        storage.step()
        hook.after_step()  # the time is that of the step before
    assert storage.history("images_per_second").values() == [(3.0, 1)]
    assert storage.history("data_share").values() == [(0.25, 1)]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_metrics_hold_both(tmp_path, workers):
    options = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "SOLVER.MAX_ITER", "5"]
    options += ["SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1", "OUTPUT_DIR", str(tmp_path)]
    options += ["DATALOADER.NUM_WORKERS", workers, "DATALOADER.PREFETCH_FACTOR", "3"]
    cfg = read_config(CONFIGS / "quick/warped_shapes_rfcn_R_18.yaml", options)
    fields = {"FORMAT": "warped_shapes", "SPLIT": "train", "NUM_IMAGES": 6, "IMAGE_SIZE": 64}
    cfg.DATASETS.CUSTOM["throughput"] = type(cfg)(fields | {"ROOT": str(tmp_path / "data")})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("throughput",), ()
    register_custom_datasets(cfg)
    try:
        (trainer := Trainer(cfg)).resume_or_load(False)
        trainer.train()
    finally:
        DatasetCatalog.remove("throughput")
        MetadataCatalog.remove("throughput")
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["images_per_second"] > 0 and 0 < last["data_share"] < 1
