"""Configs and models by name, like those of `detectron2.model_zoo`; and the content of a wheel."""

import pickle
from distutils.core import run_setup
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from d2_deformable import model_zoo
from d2_deformable.model_zoo import index
from yamls import CONFIGS, MODELS, YAMLS, load, relative

ROOT = Path(__file__).parents[2]
TRAINED = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
UNTRAINED = "quick/warped_shapes_rfcn_R_18.yaml"


def test_every_network_is_listed_and_read():
    assert model_zoo.list_configs() == sorted(map(relative, MODELS))
    assert all(Path(model_zoo.get_config_file(relative(path))) == path for path in YAMLS)


def test_a_config_is_its_yaml():
    assert model_zoo.get_config(UNTRAINED) == load(CONFIGS / UNTRAINED)
    cfg = model_zoo.get_config(TRAINED, trained=True)
    weights = model_zoo.get_checkpoint_url(TRAINED)
    assert weights == cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = ""
    assert cfg == model_zoo.get_config(TRAINED) == load(CONFIGS / TRAINED)


@pytest.mark.parametrize("name", ["quick/none.yaml", "quick", "../README.md", ""])
@pytest.mark.parametrize("function", [model_zoo.get_config_file, model_zoo.get])
def test_an_unknown_config(function, name):
    for kind in (RuntimeError, ValueError):  # Detectron2's, this package's
        with pytest.raises(kind, match=f"{name} is not available in d2_deformable's.*list_configs"):
            function(name)


def test_models():
    model = model_zoo.get(UNTRAINED, device="cpu")
    assert type(model).__name__ == "GeneralizedRCNN" and model.training

    model = model_zoo.get(TRAINED, trained=True, device=torch.device("cpu"))
    file = PathManager.get_local_path(model_zoo.get_checkpoint_url(TRAINED))
    weights = torch.load(file, weights_only=True)["model"]
    state = model.state_dict()
    assert weights and all(torch.equal(state[k], v.to(state[k])) for k, v in weights.items())
    assert model.training and model.device.type == "cpu"


def test_untrained_weights_do_not_run(tmp_path, monkeypatch):
    """MODEL.WEIGHTS of a YAML may be a .pkl file, whose code Detectron2's own loader runs."""
    sign, yaml = tmp_path / "sign", tmp_path / "net.yaml"

    class Hostile:
        def __reduce__(self):
            return sign.touch, ()

    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": {}, "__author__": Hostile()}))
    yaml.write_text(
        f"_BASE_: {model_zoo.get_config_file(UNTRAINED)}\n"
        f"MODEL: {{WEIGHTS: {tmp_path / 'weights.pkl'}}}\n"
    )
    monkeypatch.setattr("d2_deformable.model_zoo.model_zoo.get_config_file", lambda _: str(yaml))
    with pytest.raises(ValueError, match="weights.pkl .* it names"):
        model_zoo.get("net.yaml", device="cpu")
    assert not sign.exists()


def test_not_trained():
    for function in (model_zoo.get, model_zoo.get_config):
        with pytest.raises(RuntimeError, match="no checkpoint of 'quick/.*has those of model_zoo/"):
            function(UNTRAINED, trained=True)


# ---- Wheels --------------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch):
    monkeypatch.chdir(ROOT)
    command = run_setup("setup.py", stop_after="config").get_command_obj("build_py")
    command.ensure_finalized()
    return command


def test_a_wheel_holds_every_yaml(build):
    packed = {Path(target): Path(file) for target, file in build.get_output_mapping().items()}
    inside = Path(build.build_lib, "d2_deformable/model_zoo/configs")
    assert {packed[inside / relative(path)] for path in YAMLS} == {
        path.relative_to(ROOT) for path in YAMLS
    }


def test_a_build_leaves_out_what_is_gone(build, tmp_path):
    build.build_lib = str(tmp_path)
    build.packages = []
    copied = tmp_path / "d2_deformable/model_zoo/configs"
    copied.mkdir(parents=True)
    (copied / "renamed_since.yaml").touch()
    build.run()
    assert {p.relative_to(copied) for p in copied.rglob("*.yaml")} == {
        p.relative_to(CONFIGS) for p in YAMLS
    }


def test_a_checkout_reads_its_own_configs():
    assert index.CONFIGS == CONFIGS
    assert not (index.FOLDER / "configs").exists()
