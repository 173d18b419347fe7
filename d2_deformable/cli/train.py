"""Train or evaluate any network from its YAML; train_net.py runs it as well."""

import detectron2.utils.comm as comm
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils.logger import setup_logger

from ..checkpoint import StrictCheckpointer
from ..data import register_custom_datasets
from ..engine import Trainer, fall_back_to_cpu, preflight, read_config, tests_with_TTA

EXAMPLE = """
example:
  d2-deformable train --config-file configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
"""


def setup(args):
    """Build the frozen config of a run: defaults, then the YAML, then KEY VALUE overrides."""
    cfg = read_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="d2_deformable")
    fall_back_to_cpu(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    register_custom_datasets(cfg)
    return cfg


def train_or_evaluate(args):
    """Run one process of a training, or of an evaluation with --eval-only.

    Returns:
        the results of the last evaluation.
    """
    cfg = setup(args)
    if args.eval_only:
        preflight(cfg, eval_only=True, resume=args.resume)
        model = Trainer.build_model(cfg)
        StrictCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = Trainer.test(cfg, model)
        if tests_with_TTA(cfg):
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg, resume=args.resume)  # runs the same preflight checks
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def parser():
    parser = default_argument_parser(epilog=EXAMPLE)
    parser.prog = "d2-deformable train"
    return parser


def main(args):
    launch(
        train_or_evaluate,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
