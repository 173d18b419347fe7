"""Train or evaluate any network from its YAML; train_net.py runs it as well."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results

from ..analysis import training_cost
from ..analysis.training_pictures import TrainingPictures
from ..checkpoint import StrictCheckpointer
from ..data import register_custom_datasets
from ..data.inspection import inspect_datasets
from ..data.statistics import read_anchors
from ..data.summary import summarize
from ..engine import Trainer, fall_back_to_cpu, preflight, read_config, tests_with_TTA
from ..engine.checkpoint_files import checkpoint_to_resume
from ..engine.earlier_run import begun_by, check_weights_stay, put_aside, put_back
from ..engine.launch import (
    leaving_process_group,
    started_by_torchrun,
    torchrun_processes,
)
from ..utils.files import LOCK, make_folder, naming_full_disk, reserved
from .logs import set_up_logs

logger = logging.getLogger(__name__)

EXAMPLE = """
examples:
  d2-deformable train --config-file configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
  d2-deformable train --dry-run --config-file \\
      configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
"""


def checked_config(args):
    """Build and check the frozen config of a run: defaults, then the YAML, then KEY VALUE.

    It comes before Detectron2's long report of the environment and the config.
    """
    cfg = read_config(args.config_file, args.opts)
    if not args.dry_run:
        make_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
        set_up_logs(cfg.OUTPUT_DIR, comm.get_rank(), args.debug)
    fall_back_to_cpu(cfg)
    cfg.freeze()
    register_custom_datasets(cfg)
    preflight(cfg, eval_only=args.eval_only, resume=args.resume)
    return cfg


def train_or_evaluate(args, job: str = ""):
    """Run one process of a training, or of an evaluation with --eval-only.

    Args:
        job: name of its torchrun job. A training that the job has begun is resumed.

    Returns:
        the results of the last evaluation.
    """
    output = read_config(args.config_file, args.opts).OUTPUT_DIR
    if not args.eval_only and comm.all_gather(begun_by(job, output))[0]:
        args.resume = True
    cfg = checked_config(args)
    with naming_full_disk(cfg.OUTPUT_DIR), ExitStack() as stack:
        if not args.eval_only:
            stack.enter_context(_own_folder(cfg, args.resume, job))
        with _kept(Path(cfg.OUTPUT_DIR) / "config.yaml", args.eval_only):
            default_setup(cfg, args)
        return _train_or_evaluate(args, cfg)


@contextmanager
def _kept(file: Path, kept: bool) -> Iterator[None]:
    """If `kept`, put a file back after the block: an evaluation is not what the folder holds."""
    hidden = file.with_name(f".{file.name}.kept")
    if comm.is_main_process() and hidden.exists():  # the last evaluation was killed
        hidden.replace(file)
    if not (kept and comm.is_main_process() and file.exists()):
        yield
        return
    file.rename(hidden)
    try:
        yield
    finally:
        hidden.replace(file)


@contextmanager
def _own_folder(cfg, resume: bool, job: str) -> Iterator[None]:
    """Reserve OUTPUT_DIR for the block; all processes raise the error of the first.

    A training that starts anew puts an earlier one aside.
    """
    with ExitStack() as stack:
        error = None
        if comm.is_main_process():
            try:
                stack.enter_context(reserved(cfg.OUTPUT_DIR, "training"))
                put_back(cfg.OUTPUT_DIR)
                if not resume:
                    put_aside(cfg, job)
            except Exception as caught:  # others wait for it
                error = caught
        if error := comm.all_gather(error)[0]:
            raise error
        yield


def _train_or_evaluate(args, cfg):
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = StrictCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        file = checkpoint_to_resume(cfg) if args.resume else None
        checkpointer.load(str(file or cfg.MODEL.WEIGHTS))
        results = Trainer.test(cfg, model)
        if tests_with_TTA(cfg):
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg, checked=True)
    trainer.resume_or_load(args.resume, allow_changes=args.allow_changes)
    if cfg.VIS_PERIOD > 0 and comm.is_main_process():
        model = getattr(trainer.model, "module", trainer.model)
        trainer.register_hooks([TrainingPictures(cfg, model)])
    results = trainer.train()
    folder = cfg.OUTPUT_DIR
    if comm.is_main_process():
        logger.info(
            "Wrote %s. Next: `d2-deformable report %s` or "
            "`d2-deformable predict IMAGES --model %s`",
            trainer.checkpointer.get_checkpoint_file(),
            folder,
            folder,
        )
    return results


def dry_run(args):
    """Check a training and print what it will cost, from its first steps; OUTPUT_DIR stays empty.

    Raises:
        SystemExit: with a message, if the training would stop.
        ValueError, OSError, FloatingPointError: the same, as `train_or_evaluate`.
    """
    if args.eval_only or args.resume:
        raise ValueError("--dry-run starts a training: leave out --eval-only and --resume")
    # Without a handler, only warnings are shown. At a higher level the trainer would add one.
    logging.getLogger("detectron2").setLevel(logging.INFO)
    cfg = checked_config(args)
    check_weights_stay(cfg)
    if (Path(cfg.OUTPUT_DIR) / LOCK).is_file():
        with reserved(cfg.OUTPUT_DIR, "training"):
            pass
    found = inspect_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], cfg)
    anchors = read_anchors(cfg)
    for data in found:
        print(summarize(data, anchors))
    if any(data.stops_training for data in found):
        sys.exit("d2-deformable train: the training would stop, see ERROR above")
    train = [data for data in found if data.name in cfg.DATASETS.TRAIN]
    processes = max(1, args.num_gpus) * args.num_machines
    cfg = training_cost.of_one_process(cfg, processes)
    print(training_cost.describe_schedule(cfg, sum(len(data.dicts) for data in train), processes))
    cost = training_cost.measure_steps(cfg)
    print(training_cost.describe_steps(cost, cfg.SOLVER.MAX_ITER, processes))
    print(training_cost.describe_network(cfg, cost.model, train[0].dicts[0]["file_name"]))
    print("no error: the training can start")


def parser(prog: str = "d2-deformable train", epilog: str | None = EXAMPLE):
    """Detectron2's arguments and ours; an epilog of None is Detectron2's."""
    parser = default_argument_parser(epilog=epilog)
    parser.prog = prog
    parser.set_defaults(debug=False)  # `command.run` adds --debug
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="with --resume: go on although the config is not the one that the training started "
        "with; the optimizer's settings (BASE_LR, MOMENTUM, WEIGHT_DECAY) stay the checkpoint's",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and data, measure a few steps, print the schedule and the cost, stop; "
        "the exit status is 1 if the training would stop",
    )
    return parser


def main(args):
    if args.dry_run:
        return dry_run(args)
    if started_by_torchrun():
        if args.num_gpus > 1 or args.num_machines > 1:
            raise ValueError(
                "torchrun starts the processes (RANK and WORLD_SIZE are set): leave out --num-gpus "
                "and --num-machines"
            )
        cfg = read_config(args.config_file, args.opts)
        fall_back_to_cpu(cfg)
        with torchrun_processes(cfg.MODEL.DEVICE) as job:
            return train_or_evaluate(args, job)
    if args.num_gpus > 1:  # checked here, since an error of a process it starts has a traceback
        if args.num_gpus > (count := torch.cuda.device_count()):
            raise ValueError(f"--num-gpus is {args.num_gpus}, but {count} GPUs are visible")
        checked_config(args)
    launch(
        _one_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _one_process(args):
    """Train or evaluate in one of the processes of Detectron2's `launch`."""
    with leaving_process_group():
        train_or_evaluate(args)
