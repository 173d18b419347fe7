"""Train or evaluate any network from its YAML; train_net.py runs it as well."""

import detectron2.utils.comm as comm
import torch
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results

from ..checkpoint import StrictCheckpointer
from ..data import register_custom_datasets
from ..engine import Trainer, fall_back_to_cpu, preflight, read_config, tests_with_TTA
from ..engine.trainer import checkpoint_to_resume
from .logs import set_up_logs

EXAMPLE = """
example:
  d2-deformable train --config-file configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
"""


def setup(args):
    """Build and check the frozen config of a run: defaults, then the YAML, then KEY VALUE.

    Checks come before Detectron2's long report of the environment and the config.
    """
    cfg = checked_config(args)
    default_setup(cfg, args)
    return cfg


def checked_config(args):
    cfg = read_config(args.config_file, args.opts)
    set_up_logs(cfg.OUTPUT_DIR, comm.get_rank(), getattr(args, "debug", False))
    fall_back_to_cpu(cfg)
    cfg.freeze()
    register_custom_datasets(cfg)
    preflight(cfg, eval_only=args.eval_only, resume=args.resume)
    return cfg


def train_or_evaluate(args):
    """Run one process of a training, or of an evaluation with --eval-only.

    Returns:
        the results of the last evaluation.
    """
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = StrictCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        if args.resume:
            checkpoint_to_resume(checkpointer, cfg.MODEL.WEIGHTS)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if tests_with_TTA(cfg):
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg, checked=True)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def parser():
    parser = default_argument_parser(epilog=EXAMPLE)
    parser.prog = "d2-deformable train"
    return parser


def main(args):
    if args.num_gpus > 1:  # checked here, since an error of a process it starts has a traceback
        if args.num_gpus > (count := torch.cuda.device_count()):
            raise ValueError(f"--num-gpus is {args.num_gpus}, but {count} GPUs are visible")
        checked_config(args)
    launch(
        train_or_evaluate,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
