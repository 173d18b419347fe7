"""Keep the best checkpoint of a training, and stop when results no longer improve."""

import logging
import math
from pathlib import Path

import detectron2.utils.comm as comm
from detectron2.engine import HookBase

logger = logging.getLogger(__name__)


class EarlyStop(BaseException):
    """Ends a training; not an error, whose traceback Detectron2 would log."""


class BestCheckpoint(HookBase):
    """Saves model_best.pth after every evaluation that is better than all before.

    Unlike Detectron2 main's BestCheckpointer, it remembers the best value when a training resumes,
    and leaves the final checkpoint the last one. List it on every process, after the evaluation.

    Args:
        period: TEST.EVAL_PERIOD.
        metric: name of the scalar, e.g. "bbox/AP"; the higher the better.
        patience: raise EarlyStop after this many evaluations without a better value; 0 never does.
    """

    def __init__(self, checkpointer, period: int, metric: str, patience: int = 0):
        self._checkpointer = checkpointer
        self._period, self._metric, self._patience = period, metric, patience
        self._best, self._worse = -math.inf, 0
        self._compared = -1  # the last iteration

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period == 0 and done < self.trainer.max_iter:
            if comm.is_main_process():
                self._compare(self.trainer.iter)
            if self._patience and any(comm.all_gather(self._worse >= self._patience)):
                raise EarlyStop

    def after_train(self):
        finished = self.trainer.iter == self.trainer.max_iter
        if finished and comm.is_main_process():  # the last evaluation has just been made
            final = self._checkpointer.get_checkpoint_file()
            self._compare(self.trainer.iter - 1)
            self._checkpointer.tag_last_checkpoint(Path(final).name)

    def _compare(self, iteration):
        if iteration <= self._compared:  # resumed from the model_best.pth of this evaluation
            return
        self._compared = iteration
        scalars = self.trainer.storage.latest()
        value, when = scalars.get(self._metric, (None, None))
        if when != self.trainer.storage.iter:
            known = [name for name, (_, i) in scalars.items() if i == self.trainer.storage.iter]
            logger.warning(
                "TEST.BEST_METRIC %s is not among the results, so no model_best.pth is kept; "
                "choose one of %s",
                self._metric,
                ", ".join(name for name in known if "/AP" in name or "IoU" in name),
            )
            return
        if value > self._best:  # not if it is NaN
            self._best, self._worse = value, 0
            self._checkpointer.save("model_best", iteration=iteration)
        else:
            self._worse += 1
        logger.info(
            "%s is %.4g after iteration %d; the best is %.4g, %d evaluations ago",
            self._metric,
            value,
            iteration + 1,
            self._best,
            self._worse,
        )

    def state_dict(self):
        return {
            "metric": self._metric,
            "best": self._best,
            "worse": self._worse,
            "compared": self._compared,
        }

    def load_state_dict(self, state):
        if (metric := state.get("metric", self._metric)) == self._metric:
            self._best, self._worse = state["best"], state["worse"]
            self._compared = state.get("compared", -1)
        else:
            logger.warning(
                "TEST.BEST_METRIC was %s and is now %s: the next evaluation counts as the best",
                metric,
                self._metric,
            )
