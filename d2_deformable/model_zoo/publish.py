"""Publishing of a finished run as an entry of the model zoo."""

import json
import shutil
from pathlib import Path

from ..checkpoint import export_checkpoint
from ..engine.evaluate import evaluate_checkpoint
from ..engine.finished_run import read_run
from ..utils.files import replacing, sha256
from ..utils.provenance import commit, versions
from ..utils.text import count
from .index import FOLDER, parse_index

METRICS = {"AP": ("bbox", "AP"), "AP50": ("bbox", "AP50"), "AP70": ("voc", "AP70")}


def publish(
    run_folder, trained_at: str | None = None, index=None, namespace: str = ""
) -> tuple[str, dict]:
    """Export the weights of a run, evaluate the exported file, and add both to a model zoo.

    If this fails, nothing in the zoo changes.

    Args:
        run_folder: OUTPUT_DIR of a training run. For this package's own zoo, the run must
            use a YAML of configs/model_zoo.
        trained_at: git commit of the training, if it is not the current one.
        index: an index file of your own (see `register_index`), created if it does not exist. The
            checkpoint and all settings of the run, as a YAML, are written into its folder. Default:
            this package's index.
        namespace: namespace of the checkpoint's name in an index of your own.

    Returns:
        the name, and its entry in the index. AP and AP50 are COCO's, AP70 is VOC's. "versions" are
        those of the evaluation, "commit" is that of the training.

    Raises:
        FileNotFoundError: the run is not complete.
        ValueError: the run is not finished, its log does not name its YAML, or it does not have
            exactly one test set; see also `export_checkpoint` and `register_index`.
    """
    if bool(index) != bool(namespace):
        raise ValueError(
            "an index of your own needs a namespace, e.g. your lab's; this package's index takes "
            "none"
        )
    index = Path(index or FOLDER / "index.json")
    known = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    if namespace and known:
        parse_index(index)
    run = read_run(run_folder)
    finished = run.checkpoint.name == "model_final.pth"
    if not finished or not run.config_file or len(run.cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"{run_folder}: the checkpoint is {run.checkpoint.name}, the config file is "
            f"{run.config_file or 'unknown'}, DATASETS.TEST is {run.cfg.DATASETS.TEST}; expected "
            "a finished training run with one test set"
        )
    exported = run.folder / f"{run.name}.pth"
    export_checkpoint(run.checkpoint, exported)
    _, results = evaluate_checkpoint(run.cfg, exported)
    name = "/".join(filter(None, [namespace, exported.name]))
    config = f"{Path(run.config_file).parent.name}/{Path(run.config_file).name}"
    entry = {
        "config": f"{namespace}/{run.name}.yaml" if namespace else config,
        "sha256": sha256(exported),
        "bytes": exported.stat().st_size,
        "trained": f"{run.iterations} iterations of {count(run.cfg.SOLVER.IMS_PER_BATCH, 'image')}",
        "tested_on": run.cfg.DATASETS.TEST[0],
        **{name: round(results[task][metric], 2) for name, (task, metric) in METRICS.items()},
        "versions": versions(),
        "commit": trained_at or commit(),
    }
    file = index.parent / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        shutil.copyfile(exported, part)
    if namespace:
        file.with_suffix(".yaml").write_text(run.cfg.dump(), encoding="utf-8")
    text = json.dumps({**known, name: entry}, indent=2) + "\n"
    with replacing(index) as part:
        part.write_text(text, encoding="utf-8")
    return name, entry
