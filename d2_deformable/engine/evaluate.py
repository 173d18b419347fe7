"""Evaluate the network of a config with the weights of one file."""

import tempfile

from detectron2.evaluation.testing import flatten_results_dict

from ..checkpoint import load_model
from ..data import register_custom_datasets
from ..evaluation import build_evaluators
from .finished_run import results_by_task
from .trainer import Trainer


def evaluate_checkpoint(cfg, checkpoint):
    """Load `checkpoint` strictly into the model of `cfg` and evaluate it on DATASETS.TEST.

    Args:
        checkpoint: a path, or any URL that MODEL.WEIGHTS accepts.

    Returns:
        the model, and its results in the form of `FinishedRun.results`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, or is from another network.
    """
    register_custom_datasets(cfg)
    model = load_model(cfg, checkpoint)
    # Not in OUTPUT_DIR, which holds the run's own predictions.
    with tempfile.TemporaryDirectory() as folder:
        evaluators = [build_evaluators(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = Trainer.test(cfg, model, evaluators)
    return model, results_by_task(flatten_results_dict(results))
