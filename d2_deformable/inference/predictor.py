"""A trained network that takes images and returns plain Python results."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_masks
import torch
from detectron2.data.transforms import AugInput

from .. import model_zoo
from ..checkpoint import load_model
from ..config import read_config
from ..data import register_custom_datasets
from ..data.augmentations import build_test_augmentations
from ..data.records import class_names
from ..engine import fall_back_to_cpu, tests_with_TTA
from ..engine.finished_run import read_run
from ..engine.preflight import check_evaluation
from ..engine.trainer import model_with_TTA
from ..modeling.meta_arch.predicates import is_segmentor
from ..utils.pixels import read_image
from .sources import find_images

DEFAULT_MODEL = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"


@dataclass
class Prediction:
    """Detections or labels of one image.

    Detections are sorted by score, the highest first. Everything but `labels` is plain Python and
    can be written as JSON.

    file: path of the image; "" if pixels were given.
    width: of the image, upright, in pixels.
    height: of the image, upright, in pixels.
    boxes: [x0, y0, x1, y1] of each detection, in pixels of the image.
    scores: between 0 and 1.
    classes: index of the class of each detection.
    names: name of the class of each detection.
    masks: run-length codes of COCO, {"size": [height, width], "counts": text}, of each detection;
        empty if the network predicts none.
    labels: uint8 or int32 (height, width), the class index of every pixel, from a network for
        semantic segmentation; None from a detector.
    """

    file: str
    width: int
    height: int
    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    masks: list[dict] = field(default_factory=list)
    labels: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.boxes)


class Predictor:
    """A network that is loaded once and called for many images.

    TEST.AUG.ENABLED and TEST.BOX_AVERAGE.ENABLED of the config apply as in evaluation.

    Args:
        model: a config's name (see `d2_deformable.model_zoo.list_configs`), the path of a YAML, or
            the OUTPUT_DIR of a training.
        weights: path or URL of its checkpoint. Default: the model zoo's checkpoint of that config,
            or the last checkpoint of that training.
        threshold: lowest score of a detection.
        only: names of the classes to keep; default: all.
        device: default: the config's, or the CPU if that is a GPU that cannot be used.
        overrides: KEY, VALUE, ... on top of the config.

    Raises:
        FileNotFoundError: there is no such YAML or checkpoint.
        ValueError: no weights are known, they are from another network, or a class or an override
            is unknown.
    """

    def __init__(
        self,
        model=DEFAULT_MODEL,
        weights=None,
        *,
        threshold: float = 0.5,
        only=(),
        device: str | None = None,
        overrides=(),
    ):
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold}; expected a score between 0 and 1")
        self.cfg, self.weights = find_model(model, weights, overrides)
        if device:
            self.cfg.MODEL.DEVICE = str(device)
        fall_back_to_cpu(self.cfg)
        self.threshold = threshold
        # Detections below the network's own threshold do not leave it.
        for node in (self.cfg.MODEL.ROI_HEADS, self.cfg.MODEL.RETINANET):
            node.SCORE_THRESH_TEST = min(node.SCORE_THRESH_TEST, threshold)
        self.class_names = _names(self.cfg)
        if unknown := sorted(set(only) - set(self.class_names)):
            raise ValueError(
                f"no class is called {', '.join(unknown)}; the network knows "
                f"{', '.join(self.class_names)}"
            )
        self.only = [self.class_names.index(name) for name in only]
        self.segments = is_segmentor(self.cfg)
        self.model = load_model(self.cfg, self.weights)
        self._tester, self._input = self.model, self.prepare
        if tests_with_TTA(self.cfg):
            check_evaluation(self.cfg)
            self._tester = model_with_TTA(self.cfg, self.model)
            self._input = self._unresized  # each scale is resized from the original image
        self._resize = build_test_augmentations(self.cfg)

    def __call__(self, images, files=None) -> list[Prediction]:
        """Run the network on a batch.

        Images of one size run together. Others do not, since the padding that Detectron2 adds to
        the smaller ones changes what is found in them.

        Args:
            images: RGB (H, W, 3) uint8 arrays, of any sizes.
            files: path of each, for the results.
        """
        files = files or [""] * len(images)
        by_size: dict[tuple[int, ...], list[int]] = {}
        results: dict[int, Prediction] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape[:2], []).append(index)
        for size, indices in by_size.items():
            with torch.no_grad():
                outputs = self._tester([self._input(images[index]) for index in indices])
            for index, output in zip(indices, outputs, strict=True):
                results[index] = self._result(output, size, str(files[index]))
        return [results[index] for index in range(len(images))]

    def read(self, file) -> Prediction:
        """Read an image file and run the network on it.

        Raises:
            OSError: the file cannot be read.
        """
        return self([read_image(file)], [file])[0]

    def prepare(self, image: np.ndarray) -> dict:
        """Make the network's input from an image, RGB (H, W, 3) uint8, resized as in testing."""
        height, width = image.shape[:2]
        resized = AugInput(image)
        self._resize(resized)
        return self._unresized(resized.image) | {"height": height, "width": width}

    def _unresized(self, image) -> dict:
        height, width = image.shape[:2]
        pixels = image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "BGR" else image
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return {"image": torch.as_tensor(pixels), "height": height, "width": width}

    def _result(self, output, size, file) -> Prediction:
        height, width = size
        if self.segments:
            labels = output["sem_seg"].argmax(0).cpu().numpy()
            kind = np.uint8 if len(self.class_names) <= 256 else np.int32
            return Prediction(file, width, height, labels=labels.astype(kind))
        found = output["instances"].to("cpu")
        keep = found.scores >= self.threshold
        if self.only:
            keep &= torch.isin(found.pred_classes, torch.tensor(self.only))
        found = found[keep]
        found = found[found.scores.argsort(descending=True, stable=True)]
        classes = found.pred_classes.tolist()
        return Prediction(
            file,
            width,
            height,
            boxes=[[round(v, 2) for v in box] for box in found.pred_boxes.tensor.tolist()],
            scores=[round(score, 4) for score in found.scores.tolist()],
            classes=classes,
            names=[self.class_names[index] for index in classes],
            masks=_encode(found.pred_masks) if found.has("pred_masks") else [],
        )


def predict(
    inputs, model=DEFAULT_MODEL, weights=None, *, batch: int = 1, **options
) -> Iterator[Prediction]:
    """Detect objects in image files; the model is loaded once, images are read as they are needed.

    Args:
        inputs: path of an image, of a folder, or a glob; or a list of these.
        model, weights, options: see `Predictor`.
        batch: images per call of the network.

    Yields:
        a `Prediction` for each image, in the order of `sources.find_images`.

    Raises:
        FileNotFoundError: no image was found.
        OSError: an image cannot be read.
        ValueError, FileNotFoundError: see `Predictor`.
    """
    files = iter(find_images(inputs))
    predictor = Predictor(model, weights, **options)
    while some := list(islice(files, batch)):
        yield from predictor([read_image(file) for file in some], some)


def find_model(model, weights=None, overrides=()):
    """Find the config of a model and its weights; see `Predictor`.

    Returns:
        the config, not frozen, and a path or URL.
    """
    path = Path(model)
    if path.is_dir():
        run = read_run(path, overrides)
        return run.cfg, weights or run.checkpoint
    if path.is_file():
        cfg = read_config(path, overrides)
        if not weights:
            raise ValueError(
                f"{model} is a config: give its weights too (--weights; a checkpoint or URL), or "
                "the folder of its training instead"
            )
        return cfg, weights
    try:
        name = model_zoo.find_config(str(model))
    except model_zoo.NotInModelZooError as error:
        raise model_zoo.NotInModelZooError(
            f"{model}: no such file or folder, and {error}"
        ) from None
    weights = weights or model_zoo.get_checkpoint_url(name)
    return read_config(model_zoo.get_config_file(name), overrides), weights


def _names(cfg) -> list[str]:
    """Class names of the config's first data set; its files need not exist."""
    with suppress(OSError):  # class_names then makes names of the indices
        register_custom_datasets(cfg)
    datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    return class_names(cfg, next(iter(datasets), None))


def _encode(masks: torch.Tensor) -> list[dict]:
    """Encode (N, H, W) bool masks as COCO's run lengths, with text that JSON can hold."""
    codes = coco_masks.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0), np.uint8))
    return [{"size": list(c["size"]), "counts": c["counts"].decode()} for c in codes]
