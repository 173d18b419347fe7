#!/usr/bin/env python
"""Train or evaluate any model of this package from a YAML, with Detectron2's usual command line.

python train_net.py --config-file configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import sys

import detectron2.utils.comm as comm
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils.logger import setup_logger

from d2_deformable.checkpoint import StrictCheckpointer
from d2_deformable.data import register_custom_datasets
from d2_deformable.engine import (
    Trainer,
    fall_back_to_cpu,
    preflight,
    read_config,
    tests_with_TTA,
)


def setup(args):
    """Build the frozen config of a run: defaults, then the YAML, then KEY VALUE overrides."""
    cfg = read_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="d2_deformable")
    fall_back_to_cpu(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    register_custom_datasets(cfg)
    return cfg


def main(args):
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


def parse_args(argv=None):
    return default_argument_parser().parse_args(argv)


if __name__ == "__main__":
    args = parse_args(sys.argv[1:])
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
