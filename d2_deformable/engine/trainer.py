"""Detectron2's DefaultTrainer with this package's data, evaluation and optimizer."""

import logging
import weakref
from functools import partial
from inspect import signature
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils.events import CommonMetricPrinter, EventStorage
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel

from ..compat import require_private
from ..data import DatasetMapper, TrainLoader, build_train_loader, screen_proposals
from ..data.train_loader import prepare_worker
from ..evaluation import build_evaluators
from ..modeling import DetectorWithTTA, build_model
from ..modeling.tta import AnyAspectMapperTTA, supports_predict_raw
from ..utils.files import FileFormatError
from ..utils.seeding import seed_all
from ..utils.text import one_line
from .best import BestCheckpoint, EarlyStop
from .checkpoint_files import checkpoint_period, checkpoint_to_resume, named_checkpoint
from .checkpointer import TrainingCheckpointer
from .console import ConsolePrinter
from .ema import WeightAverage
from .guarded import GuardedAMPTrainer, GuardedCPUAMPTrainer, GuardedTrainer
from .interruption import Interruption
from .non_finite import ADVICE
from .offset_health import OffsetHealth
from .optimizer import build_optimizer
from .preflight import check_weights, preflight
from .resume import (
    WINDOW,
    check_alike,
    check_same_config,
    check_scalars,
    cut_metrics,
    own_tensors,
    put_scalars,
    scalars_of,
)
from .schedule import build_schedule
from .skipped_images import SkippedImages
from .throughput import Throughput

FINAL = "model_final.pth"

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """`DefaultTrainer` with preflight checks, learning-rate factors, offset health and VOC AP.

    Ctrl-C and SIGTERM stop it with a checkpoint, see `Interruption`. SOLVER.AMP.ENABLED on the CPU
    computes in bfloat16. Random numbers of a step follow from SEED, the iteration and the process,
    and a checkpoint holds all other state, so that a resumed training equals an uninterrupted one
    (on the CPU bit for bit, if the number of threads is the same).

    Args:
        resume: the argument of the `resume_or_load` that follows, as with True MODEL.WEIGHTS need
            not exist. None: not known yet, so `resume_or_load` checks MODEL.WEIGHTS.
        checked: `preflight` has been run.

    Raises:
        ValueError, FileNotFoundError: see `preflight`.
    """

    def __init__(self, cfg, *, resume: bool | None = None, checked: bool = False):
        if not checked:
            preflight(cfg, resume=resume is not False)
        # Not DefaultTrainer's own __init__, which distributes the network over GPUs even on a CPU,
        # has no AMP there, and no place for our checkpointer.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):  # no default_setup
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            devices = None if on_cpu else [comm.get_local_rank()]
            known = signature(DistributedDataParallel).parameters  # torch 2.14 renamed one
            buffers = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
            model = DistributedDataParallel(model, devices, **{buffers: False})
        amp_loop = GuardedCPUAMPTrainer if on_cpu else GuardedAMPTrainer
        loop = amp_loop if cfg.SOLVER.AMP.ENABLED else GuardedTrainer
        self._trainer = loop(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP,
            trainer=weakref.proxy(self),
        )
        require_private(self, "_trainer", "_hooks")
        self._scalars, self._written = {}, -1
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())
        self.last_step = self._trainer.last_step
        seed = getattr(self._trainer.data_loader, "seed", None)
        self.seed = comm.shared_random_seed() if seed is None else seed

    def resume_or_load(self, resume=True, allow_changes=False):
        """As Detectron2's; also log what the training starts from.

        Args:
            allow_changes: go on with another config than the checkpoint's. The optimizer's
                settings (SOLVER.BASE_LR, MOMENTUM, WEIGHT_DECAY) stay the checkpoint's; the
                schedule is the new config's.

        Raises:
            FileNotFoundError: the file is missing, MODEL.WEIGHTS or the last checkpoint.
            FileFormatError: every checkpoint is damaged.
            ValueError: the checkpoint holds weights only, or was trained with another config; see
                `check_same_config`.
        """
        file = self._resumed = checkpoint_to_resume(self.cfg) if resume else None
        if not file:
            check_weights(self.cfg)
        if not resume and (name := named_checkpoint(Path(self.cfg.OUTPUT_DIR))):
            logger.warning(
                "%s has the checkpoint %s of an earlier training. This one starts anew and "
                "overwrites such files; to continue the earlier one, call resume_or_load(True)",
                self.cfg.OUTPUT_DIR,
                name,
            )
        if file and comm.is_main_process():  # others have been damaged
            self.checkpointer.tag_last_checkpoint(file.name)
        comm.synchronize()
        self.checkpointer.before_resuming = partial(self._check_config, file, allow_changes)
        super().resume_or_load(bool(file))
        # The first line that is written again; a start that saved nothing may have left lines.
        first = self.start_iter - bool(self._scalars) if file else 0
        if resume and comm.is_main_process():
            self._written = cut_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", first)
        if not file:
            return
        logger.info("Resuming from %s at iteration %d", file, self.start_iter)
        if isinstance(self._trainer.data_loader, TrainLoader):
            self._trainer.data_loader.seed = self.seed
            self._trainer.data_loader.start = self.start_iter

    def _check_config(self, file, allow_changes: bool, state: dict):
        if not state or not isinstance(state, dict):
            raise ValueError(
                f"{file}: holds weights but not the state of a training; to start from it, name "
                "it as MODEL.WEIGHTS, without --resume and with another OUTPUT_DIR"
            )
        if "config" in state:
            check_same_config(file, state["config"], self.cfg, allow_changes)

    def state_dict(self):
        return {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),  # the optimizer; Detectron2 0.5 leaves it out
            "seed": self.seed,
            "config": self.cfg.dump(),
            "scalars": scalars_of(self.storage) if hasattr(self, "storage") else {},
        }

    def load_state_dict(self, state):
        """As Detectron2's.

        Raises:
            FileFormatError: the state is not that of a training.
        """
        if "_trainer" not in state:
            logger.warning("The checkpoint has no state of the optimizer: momentum starts at zero")
            state = {**state, "_trainer": self._trainer.state_dict()}
        try:
            check_alike(state, self.state_dict())
            check_scalars(state.get("scalars", {}))
            super().load_state_dict(state)
            self._trainer.load_state_dict(state["_trainer"])
            own_tensors(self.optimizer)
        except Exception as error:  # of torch and Detectron2, of any type
            raise FileFormatError(
                f"{self._resumed}: the state of its training is damaged: {one_line(error)}. Resume "
                "from another checkpoint, or start from its weights (MODEL.WEIGHTS) in another "
                "OUTPUT_DIR"
            ) from error
        self.seed = state.get("seed", self.seed)
        self._scalars = state.get("scalars", {})

    def train(self):
        try:
            if self.start_iter >= self.max_iter:
                return self._finish()
            return super().train()
        except EarlyStop:
            if comm.is_main_process():
                self.checkpointer.save("model_final", iteration=self.iter)
            logger.info(
                "Stopped after iteration %d: %s has not improved in %d evaluations",
                self.iter + 1,
                self.cfg.TEST.BEST_METRIC,
                self.cfg.TEST.EARLY_STOP_PATIENCE,
            )
            return self._verified_results()
        finally:
            for hook in self._hooks:
                if isinstance(hook, Interruption):
                    hook.restore()

    def _verified_results(self):
        """Results of the last evaluation, checked as Detectron2's `train` does."""
        results = getattr(self, "_last_eval_results", None)
        if results is not None and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def before_train(self):
        super().before_train()
        if self._scalars and self.start_iter <= self.max_iter:
            self._end_step()

    def _end_step(self):
        """Run the hooks that a checkpoint's step had still before it, such as its evaluation."""
        now, self.iter = self.iter, self.start_iter - 1
        has_line = self.start_iter % WINDOW == 0 or self.start_iter == self.max_iter
        put_scalars(self.storage, self._scalars, self._written, times=has_line)
        self.storage.iter = self.iter
        last = Path(self.checkpointer.get_checkpoint_file()).name
        if self.start_iter == self.max_iter and comm.is_main_process() and last != FINAL:
            self.checkpointer.save("model_final", iteration=self.iter)
        kinds = [type(hook) for hook in self._hooks]
        for hook in self._hooks[kinds.index(Interruption) :]:
            hook.after_step()
        self.iter = self.storage.iter = now

    def _finish(self):
        """Evaluate a training whose last step is done; its loop would count one step too many."""
        logger.info("All %d iterations are done: only evaluating", self.max_iter)
        self.iter = self.max_iter
        with EventStorage(self.max_iter) as self.storage:
            self.before_train()
            self.after_train()
        return self._verified_results()

    def run_step(self):
        """As Detectron2's.

        Raises:
            FloatingPointError: the training has diverged, see `Guarded`; names the iteration, and
                the last checkpoint.
        """
        seed_all(self.seed, self.iter, comm.get_rank())
        try:
            super().run_step()
        except FloatingPointError as error:
            last = self.checkpointer.get_checkpoint_file()
            raise FloatingPointError(
                f"Iteration {self.iter}: {error}. {ADVICE}"
                + (f"; the last checkpoint is {last}" if last else "; no checkpoint is saved yet")
            ) from error

    def after_train(self):
        if self.iter < self.max_iter:  # not finished: Detectron2 would evaluate in the last step
            self._hooks = [h for h in self._hooks if not isinstance(h, hooks.EvalHook)]
        super().after_train()

    def build_hooks(self):
        """Add ours to Detectron2's hooks: offset health, interruption, a final multi-scale test."""
        self.offset_health = OffsetHealth(self.cfg, self.model)
        built = super().build_hooks()
        if comm.is_main_process():  # data_time of the others is gathered there
            built.insert(1, Throughput(self.cfg.SOLVER.IMS_PER_BATCH))  # after IterationTimer
        for hook in built:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.period = checkpoint_period(self.cfg)
        average = None
        if self.cfg.MODEL_EMA.ENABLED:
            model = getattr(self.model, "module", self.model)
            average = WeightAverage(model, self.cfg.MODEL_EMA.DECAY, self.cfg.OUTPUT_DIR)
        later = (hooks.EvalHook, hooks.PeriodicWriter)
        index = min(i for i, hook in enumerate(built) if isinstance(hook, later))
        evaluated = [average.model] if average else []
        built.insert(index, Interruption(self.checkpointer, evaluated))
        if tests_with_TTA(self.cfg):
            # Next to the other evaluation: results after the writers would not be written.
            index = 1 + max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            test = partial(self.test_with_TTA, self.cfg, self.model)
            built.insert(index, hooks.EvalHook(0, test))
        if average:
            index = 1 + max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            test = partial(self.test_with_EMA, self.cfg, average.model)
            built.insert(index, hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, test))
            built.insert(0, average)
        if metric := self.cfg.TEST.BEST_METRIC:
            index = 1 + max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            period, patience = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.EARLY_STOP_PATIENCE
            built.insert(index, BestCheckpoint(self.checkpointer, period, metric, patience))
        if comm.is_main_process():
            built.insert(0, self.offset_health)
            if self.cfg.INPUT.SKIP_BROKEN_IMAGES:
                built.insert(0, SkippedImages())
        return built

    def build_writers(self):
        """As Detectron2's; its console line also has throughput and offset health."""
        printer = ConsolePrinter(self.max_iter, self.offset_health)
        writers = super().build_writers()
        return [printer if isinstance(w, CommonMetricPrinter) else w for w in writers]

    @classmethod
    def build_model(cls, cfg):
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_schedule(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        screen_proposals(cfg, "TRAIN")
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        screen_proposals(cfg, "TEST", dataset_name)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))
        # Evaluators hold the whole ground truth in Python objects.
        loader.worker_init_fn = prepare_worker
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        return build_evaluators(cfg, dataset_name, folder)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As Detectron2's, with the buffers of the first process, which checkpoints hold.

        Statistics of a BatchNorm that is not synchronised differ between processes.
        """
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_EMA(cls, cfg, model):
        """Evaluate the averaged weights; names of results get the suffix "_EMA".

        Args:
            model: `WeightAverage.model`.
        """
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_EMA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_EMA": result for name, result in results.items()}

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """Evaluate with TEST.AUG and TEST.BOX_AVERAGE; names of results get the suffix "_TTA".

        Raises:
            ValueError: TEST.BOX_AVERAGE is enabled for a model that it does not support.
        """
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, str(folder)) for name in cfg.DATASETS.TEST]
        model = model_with_TTA(cfg, model)
        if isinstance(model, DetectorWithTTA):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # every scale is resized from the original image, once
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


def tests_with_TTA(cfg) -> bool:
    """Return True if `Trainer.test_with_TTA` must follow ordinary evaluation."""
    return cfg.TEST.AUG.ENABLED or cfg.TEST.BOX_AVERAGE.ENABLED


def model_with_TTA(cfg, model):
    """Wrap a detector for TEST.AUG and TEST.BOX_AVERAGE, see `tests_with_TTA`.

    Returns:
        `DetectorWithTTA`, or Detectron2's GeneralizedRCNNWithTTA if the model predicts masks or
        `predict_raw` does not support it.

    Raises:
        ValueError: TEST.BOX_AVERAGE is enabled for a model that it does not support.
    """
    ours = supports_predict_raw(getattr(model, "module", model)) and not cfg.MODEL.MASK_ON
    if ours or cfg.TEST.BOX_AVERAGE.ENABLED:
        return DetectorWithTTA(cfg, model)
    return GeneralizedRCNNWithTTA(cfg, model, AnyAspectMapperTTA(cfg))
