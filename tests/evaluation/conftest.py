import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances


@pytest.fixture
def data_set():
    """Register {image_id: [(class, box, flags), ...]}; remove the name afterwards."""
    names = []

    def data_set(truth, classes=("cat", "dog"), name="evaluated_set", size=(100, 100)):
        def annotation(category_id, box, flags=None):
            common = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0, **(flags or {})}
            return {"category_id": category_id, "bbox": list(box), **common}

        dicts = [
            {
                "file_name": f"{image_id}.jpg",
                "image_id": image_id,
                "height": size[0],
                "width": size[1],
                "annotations": [annotation(*fields) for fields in objects],
            }
            for image_id, objects in truth.items()
        ]
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")
        names.append(name)
        return name

    yield data_set
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def process():
    """Feed {image_id: [(class, score, box), ...]} to an evaluator as a model's output."""

    def process(evaluator, detections, size=(100, 100)):
        evaluator.reset()
        for image_id, found in detections.items():
            instances = Instances(size)
            boxes = torch.tensor([box for _, _, box in found], dtype=torch.float32)
            instances.pred_boxes = Boxes(boxes.reshape(-1, 4))
            instances.scores = torch.tensor([score for _, score, _ in found])
            instances.pred_classes = torch.tensor([c for c, _, _ in found], dtype=torch.int64)
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        return evaluator

    return process
