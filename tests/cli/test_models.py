"""d2-deformable models, models show, and the names that they and other commands accept."""

import json

import pytest

from d2_deformable import model_zoo
from d2_deformable.analysis.complexity import count_parameters
from d2_deformable.cli.main import main
from d2_deformable.config import changes, read_config
from d2_deformable.model_zoo import catalog
from d2_deformable.modeling.meta_arch.fcos import FCOS
from yamls import MODELS, flat, load, relative

TRAINED = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
URL = "d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth"


@pytest.fixture
def run(capsys):
    """Run a command; return what it prints, or the line that it fails with."""

    def run(*args):
        try:
            main(["models", *args])
        except SystemExit as error:
            return error.code
        return capsys.readouterr().out

    return run


def test_every_network_is_a_row_of_at_most_100_columns(run):
    lines = run().splitlines()
    listed = [line.partition("  ")[0] or line.strip() for line in lines]
    names = [name.removesuffix(".yaml") for name in model_zoo.list_configs()]
    assert [word for word in listed[1:] if word != URL][: len(names)] == names
    assert max(map(len, lines)) <= 100 - len("  100.0M")  # the parameters, not counted here
    assert lines[listed.index(URL) - 1].split() == [
        TRAINED.removesuffix(".yaml"),
        *("detection", "160/160", "69.6"),
    ]


def test_parameters_are_those_of_the_network(run):
    (network,) = json.loads(run("MODEL_ZOO", "warped", "--json"))
    assert network == {
        "name": TRAINED,
        "task": "detection",
        "parameters": count_parameters(model_zoo.get(TRAINED, trained=True, device="cpu")),
        "test_sizes": [160],
        "max_size": 160,
        "test_sets": ["warped_shapes_val"],
        "checkpoint": URL,
        "AP": 69.59,
    }
    assert f"{network['parameters'] / 1e6:.1f}M" in run("model_zoo")


def test_a_network_that_detectron2_lacks_has_no_number_of_parameters(run):
    found = json.loads(run("R_50_FPN_1x_mdconv_c3-c5", "f", "--json"))
    missing = {network["name"].split("/")[1] for network in found if not network["parameters"]}
    assert missing == ({"fcos_R_50_FPN_1x_mdconv_c3-c5.yaml"} if FCOS is None else set())
    assert "fcos_R_50_FPN_1x_mdconv_c3-c5" in run("R_50_FPN_1x_mdconv_c3-c5", "f")


@pytest.mark.parametrize(
    ("name", "task", "sizes", "limit"),
    [
        ("COCO-Detection/mask_rcnn_R_50_FPN_1x", "instance segmentation", [800], 1333),
        ("COCO-Detection/keypoint_rcnn_R_50_FPN_1x", "keypoints", [800], 1333),
        ("COCO-Detection/panoptic_fpn_R_50_3x", "panoptic segmentation", [800], 1333),
        ("COCO-Detection/rfcn_R_101_M", "detection", [480, 576, 688, 864, 1200, 1400], 2000),
        ("quick/cards_rpn_R_18", "proposals", [240], 400),
        ("Cityscapes-SemanticSegmentation/deeplab_R_101", "semantic segmentation", [1024], 2048),
    ],
)
def test_tasks_and_sizes(name, task, sizes, limit):
    network = model_zoo.summary(f"{name}.yaml")
    assert (network["task"], network["test_sizes"], network["max_size"]) == (task, sizes, limit)
    assert network["checkpoint"] is network["AP"] is network["parameters"] is None


def test_a_registered_checkpoint_with_its_AP(run, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})
    entry = {"config": "quick/cards_rfcn_R_18.yaml", "sha256": "0" * 64}
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"acme/cards.pth": entry | {"AP": 51}}))
    model_zoo.register_index(index)
    row, url = run("cards_rfcn_R_18").splitlines()[1:3]
    assert row.endswith("  51.0") and url == "  d2_deformable://acme/cards.pth"
    index.write_text(json.dumps({"acme/cards.pth": entry | {"AP": "a note, about 51"}}))
    model_zoo.register_index(index)
    assert model_zoo.summary(entry["config"])["AP"] is None


def test_no_such_network_is_one_line(run):
    assert run("VOC", "xyz") == "d2-deformable models: no network has VOC and xyz in its name"


@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_what_differs_from_the_defaults_merges_back(path):
    cfg, again = load(path), load()
    again.merge_from_other_cfg(type(again)(changes(cfg)))
    assert again == cfg


def test_show_prints_only_what_differs(run, tmp_path):
    name = "VOC-Detection/rfcn_R_101_dconv3_dpool.yaml"
    shown = run("show", name)
    file = tmp_path / "shown.yaml"
    file.write_text(shown)
    assert read_config(file) == load(model_zoo.get_config_file(name))
    assert shown.startswith(f"# {name}\nVERSION: 2\n")
    defaults = flat(load())
    assert all(
        defaults.get(key) != value
        for key, value in flat(changes(read_config(file))).items()
        if key != "VERSION"
    )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("quick/cards_rpn_R_18.yaml", "quick/cards_rpn_R_18.yaml"),
        ("quick/cards_rpn_R_18", "quick/cards_rpn_R_18.yaml"),
        ("cards_rpn_R_18.yaml", "quick/cards_rpn_R_18.yaml"),
        ("cards_rpn_R_18", "quick/cards_rpn_R_18.yaml"),
        # quick/ has a config of the same name, but no checkpoint of it.
        ("warped_shapes_rfcn_R_18_dconv3_dpool", TRAINED),
    ],
)
def test_names(name, config):
    assert model_zoo.find_config(name) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rfcn_R_50", "rfcn_R_50 may be COCO-Detection/rfcn_R_50 or VOC-Detection/rfcn_R_50: give"),
        (
            "warped_shapes_rfcn_R18",
            "mean quick/warped_shapes_rfcn_R_18 or quick/warped_shapes_rfcn",
        ),
        ("VOC/rpn_R_101", "did you mean VOC-Detection/rpn_R_101"),
        ("R_18", "no config R_18 in"),
        ("xyz", "there is no config xyz in the model zoo; `d2-deformable models` lists all"),
        ("", "there is no config  in the model zoo"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(name, message, run):
    with pytest.raises(model_zoo.NotInModelZooError, match=message) as error:
        model_zoo.find_config(name)
    assert run("show", name) == f"d2-deformable models show: {error.value}"
    assert "\n" not in str(error.value)
