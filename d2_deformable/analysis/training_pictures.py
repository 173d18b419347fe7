"""Pictures of detections and sampling points during training, for TensorBoard."""

import logging

import numpy as np
from detectron2.engine import HookBase

from ..data.masks import read_mask
from ..data.records import class_names, dataset_records, read_inputs
from .draw import draw_detections
from .record import inspect_image, needs_proposals
from .segmentation import draw_segmentation
from .visualize import FigureOptions, figures, found_above

SCORE = 0.5  # lowest of the detections that are drawn


class TrainingPictures(HookBase):
    """Draws what the network finds in one image, and where it samples, every VIS_PERIOD iterations.

    The image is always the same, from the middle of the first test set, or of the training set if
    there is none. The pictures are those of a run's report: "pictures/detections" or
    "pictures/segmentation", "pictures/sampling_points" and "pictures/parts". Register it on the
    main process only. Detectron2's networks add proposals on training images themselves.

    Args:
        cfg: with VIS_PERIOD.
        model: not wrapped in DDP.
    """

    def __init__(self, cfg, model):
        self._cfg, self._model, self._period = cfg, model, cfg.VIS_PERIOD
        if needs_proposals(model):
            self._period = 0
            logging.getLogger(__name__).warning(
                "VIS_PERIOD: no pictures of detections, since this network has no RPN"
            )

    def before_train(self):
        if self._period:
            name = (*self._cfg.DATASETS.TEST, *self._cfg.DATASETS.TRAIN)[0]
            (self._record,) = dataset_records([name], 1)
            self._classes = class_names(self._cfg, name)

    def after_step(self):
        if self._period and (self.trainer.iter + 1) % self._period == 0:
            for kind, figure in self._draw():
                figure.canvas.draw()
                pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
                self.trainer.storage.put_image(f"pictures/{kind}", pixels.transpose(2, 0, 1).copy())

    def _draw(self):
        image, inputs = read_inputs(self._cfg, self._record)
        inspection = inspect_image(self._model, inputs)
        if inspection.labels is not None:
            truth = read_mask(self._record["sem_seg_file_name"])
            yield "segmentation", draw_segmentation(image, inspection.labels, truth, self._classes)
        else:
            found = found_above(inspection, SCORE)
            yield "detections", draw_detections(image, found, self._classes)
        if inspection.record.convs or inspection.record.pools:
            options = FigureOptions(score_thresh=SCORE)
            for kind, figure, _ in figures(image, inspection, self._classes, options):
                yield kind, figure
