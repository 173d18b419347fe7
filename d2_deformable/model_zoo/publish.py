"""From a finished training to an entry of the model zoo."""

import json
import shutil
from pathlib import Path

from ..analysis.evaluate import evaluate_checkpoint
from ..analysis.origin import commit, versions
from ..analysis.run import read_run
from ..checkpoint import export_checkpoint
from .catalog import FOLDER, read_index, sha256

METRICS = {"AP": ("bbox", "AP"), "AP50": ("bbox", "AP50"), "AP70": ("voc", "AP70")}


def publish(run_folder, trained_at: str | None = None) -> tuple[str, dict]:
    """Export the weights of a run, evaluate the exported file, and put both into the model zoo.

    Nothing in the zoo changes if that fails.

    Args:
        run_folder: OUTPUT_DIR of a run of train_net.py with a YAML of configs/model_zoo.
        trained_at: git commit of the training, if it is not that of the files now.

    Returns:
        name, and its entry in the index. AP and AP50 are COCO's, AP70 is VOC's; "versions" is what
        they were measured with, "commit" that of the training.

    Raises:
        FileNotFoundError: the run is not complete.
        ValueError: it is not finished, its log does not name its YAML, or it has not one test
            set; or see `export_checkpoint`.
    """
    run = read_run(run_folder)
    finished = run.checkpoint.name == "model_final.pth"
    if not finished or not run.config_file or len(run.cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"{run_folder}: the checkpoint is {run.checkpoint.name}, the config file is "
            f"{run.config_file or 'unknown'}, DATASETS.TEST is {run.cfg.DATASETS.TEST}; expected "
            "a finished run of train_net.py with one test set"
        )
    name = f"{run.name}.pth"
    exported = run.folder / name
    export_checkpoint(run.checkpoint, exported)
    _, results = evaluate_checkpoint(run.cfg, exported)
    config = Path(run.config_file)
    entry = {
        "config": f"{config.parent.name}/{config.name}",
        "sha256": sha256(exported),
        "bytes": exported.stat().st_size,
        "trained": f"{run.iterations} iterations of {run.cfg.SOLVER.IMS_PER_BATCH} images",
        "tested_on": run.cfg.DATASETS.TEST[0],
        **{name: round(results[task][metric], 2) for name, (task, metric) in METRICS.items()},
        "versions": versions(),
        "commit": trained_at or commit(),
    }
    index = {**read_index(), name: entry}
    shutil.copyfile(exported, FOLDER / name)
    (FOLDER / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return name, entry
