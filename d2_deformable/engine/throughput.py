"""Images per second of a training, and the share of its time that it waits for them."""

from detectron2.engine import HookBase

SCALARS = ("images_per_second", "data_share")


class Throughput(HookBase):
    """Adds two scalars of each step that Detectron2 times.

    images_per_second: of all processes together.
    data_share: the wait for the data loader over the time of the step, 0 to 1; of the process that
        waited longest.

    List it after `IterationTimer`, in the main process.

    Args:
        batch: SOLVER.IMS_PER_BATCH.
    """

    def __init__(self, batch: int):
        self._batch = batch

    def after_step(self):
        storage = self.trainer.storage
        latest = storage.latest()
        seconds, timed = latest.get("time", (0.0, -1))
        if timed == storage.iter and "data_time" in latest:  # not the first steps
            waited, _ = latest["data_time"]
            values = self._batch / seconds, waited / seconds
            storage.put_scalars(**dict(zip(SCALARS, values, strict=True)))
