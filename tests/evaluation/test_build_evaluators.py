import json
import math
import sys
import types

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, load_proposals_into_dataset
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.evaluation import print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances

from d2_deformable import add_deformable_config
from d2_deformable.compat import has_compiled_d2
from d2_deformable.evaluation import build_evaluators

BOX = (10, 10, 30, 30)
FAR = (60, 60, 80, 80)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def test_coco_and_voc_metrics(data_set, process, cfg, tmp_path):
    name = data_set({"a": [(0, BOX), (1, FAR)], "b": [(1, BOX)]})
    detections = {"a": [(0, 0.9, BOX), (1, 0.8, FAR)], "b": [(1, 0.9, BOX), (1, 0.5, FAR)]}
    results = process(build_evaluators(cfg, name), detections).evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP50"] == pytest.approx(100)
    assert results["voc"]["AP"] == results["voc"]["AP70"] == 100
    folder = tmp_path / "output/inference"
    assert (folder / "coco_instances_results.json").is_file()
    assert (folder / f"voc_results_{name}.json").is_file()


def test_equals_coco_where_both_are_exact(data_set, process, cfg):
    """Each class has one object, which is found first, second or not at all. So precision does not
    depend on recall, and 101 points give the area exactly. No IoU equals a threshold."""
    truth = {"a": [(0, BOX), (1, BOX), (2, BOX)], "b": [(3, FAR)]}
    name = data_set(truth, classes=["first", "second", "never", "loose"])
    loose = (61, 61, 80, 80)  # IoU .9025
    detections = {
        "a": [(0, 0.9, BOX), (1, 0.9, FAR), (1, 0.8, BOX), (2, 0.9, FAR)],
        "b": [(3, 0.9, loose)],
    }
    results = process(build_evaluators(cfg, name), detections).evaluate()
    coco, voc = results["bbox"], results["voc"]
    assert voc["AP"] == pytest.approx((100 + 50 + 0 + 90) / 4)
    assert coco["AP"] == pytest.approx(voc["AP"])
    assert coco["AP50"] == pytest.approx(voc["AP50"])
    assert voc["AP50"] == pytest.approx((100 + 50 + 0 + 100) / 4)


def test_metric_comes_from_the_config(data_set, process, cfg):
    name = data_set({"a": [(0, BOX)], "b": [(0, BOX)]}, classes=["cat"])
    for metric, expected in (("area", 50), ("07", 600 / 11)):
        cfg.TEST.VOC_METRIC = metric
        results = process(build_evaluators(cfg, name), {"a": [(0, 0.9, BOX)]}).evaluate()
        assert results["voc"]["AP50"] == pytest.approx(expected)


def test_empty_predictions(data_set, process, cfg):
    name = data_set({"a": [(0, BOX)]})
    results = process(build_evaluators(cfg, name), {"a": []}).evaluate()
    assert math.isnan(results["bbox"]["AP"])
    assert results["voc"]["AP"] == 0
    cfg.MODEL.MASK_ON = True
    results = process(build_evaluators(cfg, name), {"a": []}).evaluate()
    assert math.isnan(results["segm"]["AP"])
    assert process(build_evaluators(cfg, name), {}).evaluate() == {}


def test_images_without_objects(data_set, process, cfg):
    """Detectron2 then leaves "annotations" out of its json: nothing to measure, but no crash."""
    name = data_set({"a": []})
    assert process(build_evaluators(cfg, name), {"a": [(0, 0.9, BOX)]}).evaluate() == {}


@pytest.fixture
def people(tmp_path):
    """A person whose 17 keypoints lie on a line."""
    points = [[x, 20, 2] for x in range(10, 44, 2)]
    person = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400}
    person |= {"bbox": [10, 10, 34, 20], "keypoints": sum(points, []), "num_keypoints": 17}
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [person],
    }
    file = tmp_path / "person_keypoints.json"
    file.write_text(json.dumps(content))
    register_coco_instances("evaluated_people", {}, str(file), str(tmp_path))
    yield "evaluated_people", torch.tensor(points).float()
    DatasetCatalog.remove("evaluated_people")
    MetadataCatalog.remove("evaluated_people")


def test_keypoints(people, cfg):
    """Detectron2's metric; TEST.KEYPOINT_OKS_SIGMAS is the tolerance of each point."""
    name, points = people
    cfg.MODEL.KEYPOINT_ON = True
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[10.0, 10, 44, 30]])))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    # COCO's coordinates are of pixels' indices, half a pixel less than Detectron2's.
    found.pred_keypoints = (points + torch.tensor([0.5, 2.5, 0.0]))[None]  # 2 pixels too low
    for sigmas, expected in (([1.0] * 17, 100.0), ([0.01] * 17, 0.0)):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
        evaluator = build_evaluators(cfg, name)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP"] == pytest.approx(100)
        assert results["keypoints"]["AP"] == pytest.approx(expected)


@pytest.fixture
def test_dev(tmp_path):
    """Two images in the layout of coco_2017_test-dev: COCO's classes, but no "annotations"."""
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": 100, "height": 100} for i in (1, 90100)
    ]
    file = tmp_path / "image_info_test-dev2017.json"
    file.write_text(json.dumps({"info": {}, "images": images, "categories": categories}))
    name = "evaluated_test-dev"
    register_coco_instances(name, _get_builtin_metadata("coco"), str(file), str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_upload_for_coco_test_dev(test_dev, process, cfg, tmp_path):
    """Annotations of test-dev are not public: detections are written in the server's format."""
    detections = {1: [(0, 0.75, BOX), (79, 0.5, FAR)], 90100: []}
    results = process(build_evaluators(cfg, test_dev), detections).evaluate()
    assert results == {}
    print_csv_format(results)  # what Detectron2's trainer does next
    upload = json.loads((tmp_path / "output/inference/coco_instances_results.json").read_text())
    assert upload == [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.75},
        {"image_id": 1, "category_id": 90, "bbox": [60, 60, 20, 20], "score": 0.5},
    ]
    assert not list((tmp_path / "output/inference").glob("voc_results_*"))


def test_changed_data_set_is_evaluated_anew(data_set, process, cfg):
    """Detectron2 by itself would reuse the old conversion in the output folder and the metadata."""
    detections = {"a": [(0, 0.9, BOX)]}
    name = data_set({"a": [(0, BOX)]}, classes=["cat"])
    results = process(build_evaluators(cfg, name), detections).evaluate()
    assert results["bbox"]["AP50"] == pytest.approx(100)
    changed = DatasetCatalog.get(name)
    changed[0]["annotations"][0]["bbox"] = list(FAR)
    results = process(build_evaluators(cfg, name), detections).evaluate()
    assert results["bbox"]["AP50"] == 0
    assert not hasattr(MetadataCatalog.get(name), "json_file")


def test_json_file_of_the_metadata_is_used(data_set, process, cfg, tmp_path):
    name = data_set({"a": [(0, BOX)]}, classes=["cat"])
    MetadataCatalog.get(name).json_file = str(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        build_evaluators(cfg, name)


def test_has_compiled_d2(monkeypatch):
    import detectron2

    def stub(**members):
        module = types.ModuleType("detectron2._C")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, "detectron2._C", module)
        monkeypatch.setattr(detectron2, "_C", module, raising=False)

    def placeholder(name):
        raise ImportError(name)

    stub(COCOevalEvaluateImages=len)
    assert has_compiled_d2()
    stub(__getattr__=placeholder)
    assert not has_compiled_d2()
    stub()
    assert not has_compiled_d2()
    monkeypatch.delattr(detectron2, "_C")
    monkeypatch.setitem(sys.modules, "detectron2._C", None)  # not installed
    assert not has_compiled_d2()


def test_recall_of_proposals_whose_images_have_names(data_set, cfg, tmp_path):
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    name = data_set({"first": [(0, BOX), (1, FAR)], "second": [(1, BOX)]})
    evaluator = build_evaluators(cfg, name)
    evaluator.reset()
    for image_id in ("first", "second"):
        proposals = Instances((100, 100), proposal_boxes=Boxes(torch.tensor([BOX]).float()))
        proposals.objectness_logits = torch.zeros(1)
        evaluator.process([{"image_id": image_id}], [{"proposals": proposals}])
    results = evaluator.evaluate()
    assert set(results) == {"box_proposals"}
    assert results["box_proposals"]["AR@100"] == pytest.approx(200 / 3)
    file = tmp_path / f"output/inference/{name}_proposals.pkl"
    assert not (file.parent / "box_proposals.pkl").exists()
    (record,) = load_proposals_into_dataset([{"image_id": "second"}], str(file))
    assert record["proposal_boxes"].tolist() == [list(BOX)]
    assert record["proposal_bbox_mode"] == BoxMode.XYXY_ABS
