"""The checkpoint of the model zoo loads completely, detects, and can be fine-tuned."""

import logging
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager

import train_net
from d2_deformable import add_deformable_config
from d2_deformable.checkpoint import StrictCheckpointer

CONFIG = Path(__file__).parents[2] / "configs/model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
URL = "d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth"


def network(num_classes):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return build_model(cfg)


def test_loads_whole_into_the_network_of_its_config():
    model = network(num_classes=8)
    assert StrictCheckpointer(model).load(URL) == {}, "nothing but weights"
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_detects(tmp_path, monkeypatch):
    """The bound is far below the AP on all 200 images (see the index), far above random weights."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    overrides = ["MODEL.WEIGHTS", URL, "OUTPUT_DIR", str(tmp_path / "output")]
    overrides += ["DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES", "40"]
    arguments = ["--config-file", str(CONFIG), "--eval-only", *overrides]
    results = train_net.main(train_net.parse_args(arguments))
    assert results["bbox"]["AP"] > 45
    assert results["bbox"]["AP50"] > 70


def test_fine_tunes_to_another_number_of_classes(caplog, monkeypatch):
    monkeypatch.setattr(
        logging.getLogger("fvcore"), "propagate", True
    )  # caplog listens at the root
    model = network(num_classes=3)
    DetectionCheckpointer(model).load(URL)
    new = {
        "roi_heads.box_predictor.cls_score.score_maps.weight",
        "roi_heads.box_predictor.cls_score.score_maps.bias",
        "roi_heads.box_predictor.cls_score.offset_maps.weight",
        "roi_heads.box_predictor.cls_score.offset_maps.bias",
    }
    skipped = [text for text in caplog.messages if text.startswith("Skip loading parameter")]
    assert {text.split("'")[1] for text in skipped} == new
    file = torch.load(PathManager.get_local_path(URL))["model"]
    for name, value in model.state_dict().items():
        assert name in new or torch.equal(value, file[name].to(value.dtype)), name

    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [60, 30, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 2])
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with EventStorage():
            loss = sum(model([{"image": image, "instances": instances}] * 2).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
