import json
from pathlib import Path

import pytest
import torch

import train_net
from d2_deformable import model_zoo
from d2_deformable.cli.main import main
from d2_deformable.model_zoo import catalog, publish

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
NAME = f"{CONFIG.stem}.pth"


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo with one other checkpoint, which replaces ours."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    other = {"config": "model_zoo/other.yaml", "sha256": "0" * 64}
    (folder / "index.json").write_text(json.dumps({"other.pth": other}))
    for module in (catalog, publish):
        monkeypatch.setattr(module, "FOLDER", folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """OUTPUT_DIR of a training run of two steps."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    overrides = {
        "OUTPUT_DIR": tmp_path / "output",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PRECISE_BN.NUM_ITER": 1,
        "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 4,
        "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": 2,
    }
    pairs = [str(x) for pair in overrides.items() for x in pair]
    train_net.main(train_net.parse_args(["--config-file", str(CONFIG), *pairs]))
    return tmp_path / "output"


def test_a_run_becomes_an_entry(run, zoo, capsys):
    predictions = sorted((run / "inference").iterdir())
    before = [(file.name, file.stat().st_mtime_ns) for file in predictions]
    main(["publish", str(run), "--trained-at", "0123abc"])
    index = json.loads((zoo / "index.json").read_text())
    assert list(index) == ["other.pth", NAME]
    entry = index[NAME]
    assert entry["config"] == f"model_zoo/{CONFIG.name}"
    assert entry["trained"] == "2 iterations of 2 images"
    assert entry["tested_on"] == "warped_shapes_val"
    assert entry["commit"] == "0123abc"
    assert entry["bytes"] == (zoo / NAME).stat().st_size
    assert all(0 <= entry[metric] <= 100 for metric in ("AP", "AP50", "AP70"))
    assert "torch" in entry["versions"] and "Detectron2" in entry["versions"]
    assert catalog.checkpoint_file(NAME) == zoo / NAME
    assert f"d2_deformable://{NAME}" in capsys.readouterr().out
    assert [(file.name, file.stat().st_mtime_ns) for file in predictions] == before


def test_into_a_zoo_of_ones_own(run, zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})
    index = tmp_path / "lab/index.json"
    for _ in range(2):  # the second entry replaces the first
        main(["publish", str(run), "--index", str(index), "--namespace", "acme"])
    assert catalog.register_index(index) == [f"acme/{NAME}"]
    model = model_zoo.get(f"acme/{CONFIG.name}", trained=True, device="cpu")
    final = torch.load(run / "model_final.pth")["model"]["backbone.res5.1.conv2.weight"]
    assert torch.equal(model.backbone.res5[1].conv2.weight, final.half().float())
    assert model_zoo.get_config(f"acme/{CONFIG.name}").SOLVER.MAX_ITER == 2
    assert [file.name for file in zoo.iterdir()] == ["index.json"], "not in the package's zoo"
    for arguments in (["--index", str(index)], ["--namespace", "acme"]):
        with pytest.raises(SystemExit, match="an index of your own needs a namespace"):
            main(["publish", str(run), *arguments])
    index.write_text('{"shapes": 1}')
    with pytest.raises(SystemExit, match="'shapes' must be a name of the form namespace/name"):
        main(["publish", str(run), "--index", str(index), "--namespace", "acme"])


def test_what_fails_changes_nothing(run, zoo, monkeypatch):
    before = (zoo / "index.json").read_text()
    (run / "model_final.pth").rename(run / "model_0000000.pth")
    (run / "last_checkpoint").write_text("model_0000000.pth")
    with pytest.raises(
        SystemExit, match="the checkpoint is model_0000000.pth.*a finished training run"
    ):
        main(["publish", str(run)])
    (run / "model_0000000.pth").rename(run / "model_final.pth")

    (run / "log.txt").unlink()
    with pytest.raises(SystemExit, match="^d2-deformable publish: .*the config file is unknown"):
        main(["publish", str(run)])

    def fail(*_):
        raise ValueError("of another network")

    monkeypatch.setattr(publish, "evaluate_checkpoint", fail)
    (run / "log.txt").write_text(
        f"Command line arguments: Namespace(config_file='{CONFIG}', "
        "eval_only=False, num_gpus=1, resume=False, opts=[])\n"
    )
    with pytest.raises(SystemExit, match="of another network"):
        main(["publish", str(run)])
    assert (zoo / "index.json").read_text() == before
    assert [file.name for file in zoo.iterdir()] == ["index.json"]
