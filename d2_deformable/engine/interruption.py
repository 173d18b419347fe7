"""Stop a training on Ctrl-C or at the end of a job's time, without losing what it has learned."""

import logging
import os
import signal
import threading

import detectron2.utils.comm as comm
from detectron2.engine import HookBase

from .launch import highest_of_processes

# Schedulers send SIGTERM or, a while before the end, SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

logger = logging.getLogger(__name__)


class Interruption(HookBase):
    """Stops after the current step, or during evaluation at once, and saves a checkpoint.

    Raises KeyboardInterrupt for SIGINT, and SystemExit with status 0 for SIGTERM and SIGUSR1, since
    nothing is lost. A second signal has its usual effect. List it on every process, after the hooks
    that change the state of the training and before evaluation. Call `restore` after the training.
    Outside the main thread it does nothing.

    Args:
        checkpointer: saves model_<iteration>.pth.
        evaluated: networks that evaluations use besides the trainer's. A network in evaluation
            mode tells that an evaluation is running.

    Attributes:
        stopped: whether a signal has stopped the training.
    """

    def __init__(self, checkpointer, evaluated=()):
        self.stopped = False
        self._signal = None
        self._checkpointer = checkpointer
        self._evaluated = evaluated
        self._previous = {}

    def before_train(self):
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}

    def after_step(self):
        # All processes stop together.
        self._signal = highest_of_processes(self._signal or 0, self.trainer.model)
        if self._signal:
            self._stop()

    def after_train(self):
        if self.trainer.iter + 1 < self.trainer.max_iter:  # otherwise, the last evaluation follows
            self.restore()
        if self.stopped and comm.is_main_process():
            logger.warning(
                "Interrupted after iteration %d, saved in %s. To go on, run the same command with "
                "--resume before its KEY VALUE pairs",
                self.trainer.iter + 1,
                self._save(),
            )

    def _handle(self, number, frame):
        if os.getpid() != self._process:  # a process of the data loader has inherited this
            return
        self._signal = number
        self.restore()
        evaluating = not all(model.training for model in (self.trainer.model, *self._evaluated))
        alone = comm.get_world_size() == 1
        # A signal may come while a log line is being written, so not by the logger.
        if evaluating and alone:
            os.write(2, b"Stopping this evaluation; --resume makes it again\n")
            self._stop()
        part = "evaluation" if evaluating else "step"  # others would wait for this process
        text = f"Stopping after this {part}; the same signal again stops at once\n"
        os.write(2, text.encode())

    def _stop(self):
        self.stopped = True
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)

    def restore(self):
        """Give the signals back their former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save(self) -> str:
        """Save a checkpoint, unless this iteration already has one; return its path."""
        names = [f"model_{self.trainer.iter:07d}"]
        if self.trainer.iter + 1 == self.trainer.max_iter:
            names.append("model_final")
        file = self._checkpointer.get_checkpoint_file()
        if os.path.basename(file) not in [f"{name}.pth" for name in names]:
            self._checkpointer.save(names[0], iteration=self.trainer.iter)
        return self._checkpointer.get_checkpoint_file()
