"""Workers of a loader share the records: their private memory does not grow with the data set."""

import gc
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.fresh import private_mib
from benchmarks.records import memory_of_workers, reading_loader
from d2_deformable.config import read_config
from d2_deformable.data import build_train_loader
from d2_deformable.data.train_loader import prepare_worker
from d2_deformable.engine import Trainer
from d2_deformable.engine.imagenet import image_folders
from yamls import CONFIGS

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"
)
FEW, MANY = 2_000, 60_000
MORE = 10  # MiB; a list of dicts takes more than twice that for MANY


@pytest.fixture
def config(tmp_path):
    """A config with a data set of as many records as asked for, of one small image."""
    file = tmp_path / "image.jpg"
    Image.new("RGB", (40, 30)).save(file)

    def records(count):
        box = {"bbox_mode": 0, "category_id": 0, "iscrowd": 0}
        return [
            {"file_name": str(file), "image_id": i, "width": 40, "height": 30}
            | {"annotations": [{**box, "bbox": [1.5, 2.5, 20.0 + k, 25.0]} for k in range(2)]}
            for i in range(count)
        ]

    def make(count, *options):
        options = ["DATALOADER.NUM_WORKERS", "2", "MODEL.DEVICE", "cpu", *options]
        cfg = read_config(CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml", options)
        name = f"records_{count}"
        DatasetCatalog.register(name, lambda: records(count))
        MetadataCatalog.get(name).set(thing_classes=["thing"])
        registered.append(name)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
        return cfg

    registered = []
    yield make
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def growth(config, **options) -> float:
    """Private MiB of a worker that MANY records cost beyond FEW."""
    few, many = (memory_of_workers(reading_loader(config(n), **options))[0] for n in (FEW, MANY))
    return many - few


def test_records_are_shared_by_the_workers_of_a_training(config):
    assert growth(config) < MORE


def test_a_list_would_not_be(config):
    """A test of the test above."""
    assert growth(config, serialize=False) > 2 * MORE


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_loader_keeps_no_list_of_records(config, sampler):
    cfg = config(1000, "DATALOADER.SAMPLER_TRAIN", sampler)
    loader = build_train_loader(cfg)
    next(iter(loader))
    gc.collect()
    kept = [x for x in gc.get_objects() if type(x) is dict and x.get("image_id") == 500]
    assert not kept


@pytest.mark.parametrize("init, most", [(prepare_worker, MORE), (None, None)])
def test_collecting_garbage_copies_nothing_of_the_parent(init, most):
    """Such as the ground truth that an evaluator holds."""
    held = [{"box": [float(i)]} for i in range(3 * MANY)]
    loader = DataLoader(range(9), num_workers=1, collate_fn=_collect, worker_init_fn=init)
    copied = next(iter(loader))
    assert copied < most if most else copied > 2 * MORE
    assert len(held) == 3 * MANY


def _collect(batch):
    """Collect garbage; return the private MiB that this adds to the worker.

    The parent waits meanwhile, since its writes would add some too.
    """
    before = private_mib()
    gc.collect()
    return private_mib() - before


def test_loaders_of_evaluation_do_so_too(config):
    cfg = config(5)
    (name,) = cfg.DATASETS.TEST
    assert Trainer.build_test_loader(cfg, name).worker_init_fn is prepare_worker
    assert build_detection_test_loader(cfg, name).worker_init_fn is None


def test_an_image_folder_keeps_no_list(tmp_path):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(tmp_path / split / label / "0.jpg")
    for folder in image_folders(tmp_path, 32):
        assert not isinstance(folder.samples, list) and folder.imgs is folder.samples
        assert [folder[i][1] for i in range(len(folder))] == [0, 1]
