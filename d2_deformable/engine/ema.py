"""An exponential moving average of the weights, often better than the last weights."""

from pathlib import Path

import detectron2.utils.comm as comm
from detectron2.engine import HookBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoint import write_weights
from .non_finite import is_finite

FILE = "model_ema.pth"


class WeightAverage(HookBase):
    """Averages the weights after every step, and writes them as model_ema.pth after training.

    Running statistics of batch norms are averaged as well. The average is in every checkpoint of
    the trainer, so that a resumed training goes on with it. List it on every process, before the
    hook that saves checkpoints.

    Args:
        model: not wrapped in DDP; a copy of it holds the average.
        decay: share of the average that a step keeps. The first steps keep less, (1 + n) / (10 + n)
            after n steps as in TensorFlow's ExponentialMovingAverage, since the average would
            otherwise hold on to the initial weights.
        folder: where model_ema.pth is written.

    Raises:
        ValueError: see `check_decay`.
    """

    def __init__(self, model, decay: float, folder):
        check_decay(decay)
        self._model, self._folder = model, Path(folder)

        def update(average, weights, steps):
            n = int(steps)
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(average, weights, n)

        self._average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)

    @property
    def model(self):
        """The network with the averaged weights."""
        return self._average.module

    def after_step(self):
        self._average.update_parameters(self._model)

    def after_train(self):
        weights = self.model.state_dict()
        if comm.is_main_process() and self._average.n_averaged and is_finite(weights):
            write_weights(weights, self._folder / FILE)

    def state_dict(self):
        return self._average.state_dict()

    def load_state_dict(self, state):
        self._average.load_state_dict(state)


def check_decay(decay: float) -> None:
    """Check MODEL_EMA.DECAY.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"MODEL_EMA.DECAY is {decay}; expected a share below 1, such as 0.999")
