import json

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser

from d2_deformable import add_deformable_config
from d2_deformable.engine.finished_run import read_run


@pytest.fixture
def folder(tmp_path):
    """OUTPUT_DIR of a run, with a config and a checkpoint."""
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.SEED = 7
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "model_final.pth").touch()
    return tmp_path


def write_metrics(folder, lines):
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_log(folder, *commands):
    lines = ["[11/23 05:46:10] detectron2 INFO: Rank of current process: 0. World size: 1"]
    for command in commands:
        args = default_argument_parser().parse_args(command)
        lines.append(f"[11/23 05:46:11] detectron2 INFO: Command line arguments: {args}")
        lines.append("[11/23 05:46:11] detectron2 INFO: Contents of args.config_file=a.yaml:")
    (folder / "log.txt").write_text("\n".join(lines))


def test_config_and_overrides(folder):
    run = read_run(folder, ["MODEL.DEVICE", "cpu"])
    assert run.cfg.SEED == 7 and run.cfg.MODEL.DEVICE == "cpu"
    assert run.checkpoint == folder / "model_final.pth"
    assert (run.command, run.history, run.iterations, run.seconds) == ("", [], 0, 0)
    assert run.name == folder.name


def test_keys_of_other_plugins(folder):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.NEIGHBOUR = CfgNode({"ON": True})
    cfg.NEIGHBOUR = 3
    (folder / "config.yaml").write_text(cfg.dump())
    run = read_run(folder, ["NEIGHBOUR", 4])
    assert run.cfg.MODEL.RESNETS.NEIGHBOUR.ON and run.cfg.NEIGHBOUR == 4
    with pytest.raises(ValueError, match="no key NEIGBOUR; did you mean NEIGHBOUR"):
        read_run(folder, ["NEIGBOUR", 4])


def test_a_damaged_config_is_one_line(folder):
    (folder / "config.yaml").write_text("VERSION: 2\nMODEL: [1")
    with pytest.raises(ValueError, match=r"config.yaml, .* no YAML of keys and values: .*line 2"):
        read_run(folder)
    (folder / "config.yaml").write_text("VERSION: 2\nSEED: x")
    with pytest.raises(
        ValueError, match="config.yaml, .*SEED is x .str.; expected int, such as -1$"
    ):
        read_run(folder)


def test_a_run_without_config_or_checkpoint_is_an_error(folder):
    (folder / "model_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint \(model_final.pth\)"):
        read_run(folder)
    (folder / "last_checkpoint").write_text("model_0000099.pth")
    with pytest.raises(FileNotFoundError, match="model_0000099.pth or model_final.pth"):
        read_run(folder)
    (folder / "model_0000099.pth").touch()
    assert read_run(folder).checkpoint.name == "model_0000099.pth"
    (folder / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="holds no config.yaml: give the OUTPUT_DIR"):
        read_run(folder)


def test_a_newer_checkpoint_comes_before_an_old_final_one(folder):
    (folder / "model_0000099.pth").touch()
    (folder / "last_checkpoint").write_text("model_0000099.pth")
    assert read_run(folder).checkpoint.name == "model_0000099.pth"
    (folder / "last_checkpoint").write_text("model_final.pth")
    assert read_run(folder).checkpoint.name == "model_final.pth"


def test_what_was_trained_again_replaces_the_old(folder):
    steps = [{"iteration": i, "total_loss": 9.0, "time": 1.0} for i in (19, 39, 59)]
    resumed = [{"iteration": i, "total_loss": 1.0, "time": 0.5} for i in (39, 79)]
    write_metrics(folder, steps + resumed)
    run = read_run(folder)
    assert [line["total_loss"] for line in run.history] == [9, 1, 1]
    assert run.iterations == 80
    assert run.seconds == 20 * 1.0 + 20 * 0.5 + 40 * 0.5


def test_results_are_those_of_the_last_evaluation(folder):
    scalars = {"total_loss": 1.0, "rpn/num_pos_anchors": 3.0, "fast_rcnn/cls_accuracy": 0.5}
    write_metrics(
        folder,
        [
            {"iteration": 10, "bbox/AP": 1.0, "voc/AP50-cat": float("nan"), **scalars},
            {"iteration": 20, "bbox/AP": 2.0, "voc/AP50-cat": 3.0, "voc/AP-and/or": 6.0},
            {"iteration": 21, "bbox/ignored": 7.0, "a/sem_seg/mIoU": 4.0, "a/sem_seg/IoU-cat": 5.0},
        ],
    )
    assert read_run(folder).results == {
        "bbox": {"AP": 2.0, "ignored": 7.0},
        "voc": {"AP50-cat": 3.0, "AP-and/or": 6.0},
        "a/sem_seg": {"mIoU": 4.0, "IoU-cat": 5.0},
    }


def test_the_command_is_that_of_the_last_training(folder):
    write_log(folder, ["--config-file", "old.yaml"])
    assert read_run(folder).command == "d2-deformable train --config-file old.yaml"
    write_log(
        folder,
        ["--config-file", "old.yaml"],
        ["--config-file", "configs/it's new.yaml", "--num-gpus", "2", "--resume"]
        + ["SOLVER.STEPS", "(1, 2)"],
        ["--config-file", "other.yaml", "--eval-only"],
    )
    run = read_run(folder)
    assert run.config_file == "configs/it's new.yaml"
    assert run.name == "it's new"
    assert run.command == (
        """d2-deformable train --config-file 'configs/it'"'"'s new.yaml' --num-gpus 2 --resume """
        "SOLVER.STEPS '(1, 2)'"
    )


def test_a_line_that_was_being_written(folder):
    write_metrics(folder, [{"iteration": 19, "total_loss": 1.0}])
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 39, "tot')
    assert read_run(folder).iterations == 20


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        "null",
        "{}",
        '{"iteration": 39, "tot{"iteration": 59}',
        '{"iteration": true}',
        '{"iteration": 1e5}',
        '{"iteration": NaN}',
        '{"iteration": -1}',
        '{"iteration": 1' + "0" * 400 + "}",
        '{"iteration": ' + "9" * 5000 + "}",
        '{"iteration": [' + "[" * 100_000,
        "\0\xff",
    ],
)
def test_damaged_metrics(folder, line):
    content = f'{{"iteration": 19}}\n{line}\n{{"iteration": 59}}\n'
    (folder / "metrics.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="metrics.json: line 2 is damaged .*Remove the line") as at:
        read_run(folder)
    assert "\n" not in str(at.value) and len(str(at.value)) < 600


def test_values_that_are_no_numbers(folder):
    odd = {"a": "text", "b": {}, "c": [1], "d": None, "e": True, "f": 10**400, "bbox/AP": 10**400}
    write_metrics(folder, [{"iteration": 19, "total_loss": float("nan"), "lr": 1, **odd}])
    (line,) = read_run(folder).history
    assert line.keys() == {"iteration", "total_loss", "lr"}


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "config_file='a.yaml'",
        "config_file='a.yaml', eval_only=False, num_gpus=1, resume=False, opts=[",
        "config_file=0, eval_only=False, num_gpus=1, resume=False, opts=[]",
        "config_file='a.yaml', eval_only=False, num_gpus=1, resume=False, opts=[1]",
        "config_file='a.yaml', eval_only=False, num_gpus=1, resume=False, opts=5",
        "config_file=open('x'), eval_only=False, num_gpus=1, resume=False, opts=[]",
        "eval_only=" + "[" * 5000,
        "eval_only=" + "-" * 50_000 + "1",
        "eval_only=" + "1+" * 49_000 + "1",
        "**{}",
        ") + f(",
        "x" * 10**6,
        "\0",
    ],
)
def test_a_damaged_log(folder, arguments):
    with (folder / "log.txt").open("wb") as log:
        log.write(b"\xff\xfe Command line arguments: Namespace(" + arguments.encode() + b")\n")
    run = read_run(folder)
    assert (run.config_file, run.command, run.name) == ("", "", folder.name)
