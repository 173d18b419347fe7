"""The analysis commands on tiny networks, run as a user would type them."""

import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from d2_deformable.cli.main import main
from yamls import CONFIGS, load

OVERRIDES = [
    *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.REDUCED_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"),
    *("DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES", "3"),
]


RFCN = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
FASTER = CONFIGS / "quick/warped_shapes_faster_rcnn_R_18_dconv3_dpool.yaml"
PLAIN = CONFIGS / "quick/warped_shapes_rfcn_R_18.yaml"
FIXED = ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", "True")


@pytest.fixture
def weights(tmp_path):
    """weights(yaml, ...) -> a checkpoint of the tiny network; its offset layers are not zero."""

    def weights(yaml, *overrides):
        cfg = load(yaml)
        cfg.merge_from_list([*OVERRIDES, *overrides])
        torch.manual_seed(0)
        model = build_model(cfg)
        for name, p in model.named_parameters():
            if "offset" in name:
                torch.nn.init.normal_(p, std=0.1)
        file = tmp_path / f"{yaml.stem}.pth"
        torch.save({"model": model.state_dict()}, file)
        return str(file)

    return weights


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(analysis, arguments...) -> the content of its JSON file."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def run(name, *argv):
        output = tmp_path / "output"
        main(["analyze", name, *map(str, argv), "--output", str(output)])
        (file,) = output.glob("*.json")
        return json.loads(file.read_text())

    return run


def check_origin(result):
    assert result["command"].split()[0] == "d2-deformable"
    assert "torch" in result["versions"]
    assert result["machine"] and result["commit"]


def test_dilation(run, weights, tmp_path):
    given = "--config-file", RFCN, "--weights", weights(RFCN)
    result = run("dilation", *given, "--max-images", 2, "--pictures", 1, *OVERRIDES)
    check_origin(result)
    assert result["images"] == 2
    assert result["datasets"] == ["warped_shapes_val"]
    plain, *deformable = result["layers"].values()
    assert plain["all"]["mean"] == 2 and plain["all"]["std"] == 0 and not plain["deformable"]
    assert len(deformable) == 3
    for row in deformable:
        assert row["deformable"] and row["all"]["std"] > 0
        assert sum(row[c]["count"] for c in ("small", "medium", "large", "background")) == 32
        assert row["background"]["count"] > 0
    assert (tmp_path / "output/effective_dilation.png").is_file()
    assert len(list((tmp_path / "output/maps").glob("*.png"))) == 1


def test_sampling(run, weights, image, tmp_path):
    given = *OVERRIDES, "--config-file", RFCN, "--weights", weights(RFCN)
    given = *given, "--images", image
    result = run("sampling", *given, "--point", 5, 50, "--box", 5, 5, 45, 55, "disc")
    check_origin(result)
    (of_image,) = result["images"]
    assert (of_image["file"], of_image["width"], of_image["height"]) == (image, 80, 60)
    assert len(of_image["sampling_points"]["units"][0]["learned"]["points"]) == 729
    (part,) = of_image["parts"]
    assert part["class"] == "disc" and len(part["learned"]) == 49
    pictures = {p.name for p in (tmp_path / "output").glob("*.png")}
    kinds = "sampling_points", "offset_lengths", "parts"
    assert pictures == {f"0_photo_{kind}.png" for kind in kinds}


def test_sampling_of_folders_and_globs(run, weights, image, tmp_path):
    (tmp_path / "photos/inner").mkdir(parents=True)
    files = [tmp_path / "photos/inner/a.png", tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        shutil.copy(image, file)
    given = *OVERRIDES, "--config-file", RFCN, "--weights", weights(RFCN), "--point", 5, 50
    result = run("sampling", *given, "--images", tmp_path / "photos", tmp_path / "[ot][nw]*.png")
    assert [of_image["file"] for of_image in result["images"]] == list(map(str, files))


def test_sampling_of_the_test_set_and_what_is_detected(run, weights):
    given = "--config-file", FASTER, "--weights", weights(FASTER), "--num-images", 2
    result = run("sampling", *given, "--score-thresh", 0, "--layers", 2, *OVERRIDES)
    assert len(result["images"]) == 2
    for of_image in result["images"]:
        units = of_image["sampling_points"]["units"]
        assert len(units[-1]["learned"]["points"]) == 81
        assert 1 <= len(of_image["parts"]) <= 3


def test_complexity(run, weights, image, tmp_path):
    files = "--config-file", PLAIN, RFCN
    result = run("complexity", *OVERRIDES, *files, "--repeats", 2)
    check_origin(result)
    plain, deformable = result["networks"]
    assert plain["parameters"]["offsets"] == 0 < deformable["parameters"]["offsets"]
    growth = deformable["parameters"]["total"] - plain["parameters"]["total"]
    assert growth == deformable["parameters"]["offsets"]
    for network in (plain, deformable):
        assert network["input_size"] == [64, 85]
        assert network["flops"]["total"] == network["flops_by_torch"]
        seconds = network["seconds"]
        assert 0 < seconds["forward"]["median"] < seconds["whole"]["median"]
    assert (tmp_path / "output/complexity.png").is_file()
    given = "--weights", weights(PLAIN), weights(RFCN), "--image", image, "--no-time"
    result = run("complexity", *OVERRIDES, *files, *given)
    assert not any("seconds" in network for network in result["networks"])
    assert result["networks"][0]["weights"].endswith(".pth")


def test_complexity_needs_no_data(run):
    yaml = CONFIGS / "quick/cards_rfcn_R_18.yaml"
    given = *OVERRIDES[:-2], "--config-file", yaml, "--no-time"
    (network,) = run("complexity", *given)["networks"]
    assert network["parameters"]["total"] > 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dilation", ["MODEL.NO_SUCH", "1"], "there is no key MODEL.NO_SUCH"),
        ("dilation", ["--dataset", "nowhere"], "there is no data set nowhere"),
        ("dilation", ["DATASETS.TEST", "()"], "DATASETS.TEST, which is empty"),
        ("dilation", ["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "from another network"),
        (
            "sampling",
            ["--images", "nowhere.png"],
            "nowhere.png: no such file .give KEY VALUE",
        ),
        ("sampling", ["--images", __file__], "cannot be read"),
        ("sampling", ["--layers", "0"], "0 layers"),
        ("sampling", ["--num-images", "0"], "--num-images is 0"),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(run, weights, name, arguments, message):
    given = *OVERRIDES, "--config-file", RFCN, "--weights", weights(RFCN)
    with pytest.raises(SystemExit, match=f"^d2-deformable analyze {name}: .*{message}"):
        run(name, *given, *arguments)


def test_unknown_keys_of_a_file_are_reported(run, tmp_path):
    yaml = tmp_path / "wrong.yaml"
    yaml.write_text("MODEL: {NO_SUCH: 1}")
    with pytest.raises(SystemExit, match="analyze complexity: .*wrong.yaml.* no key MODEL.NO_SUCH"):
        run("complexity", "--config-file", yaml)


def test_missing_files_are_reported(run, tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(SystemExit, match="missing: there is no such file"):
        run("dilation", "--config-file", missing, "--weights", missing)
    with pytest.raises(SystemExit, match="missing: no such checkpoint"):
        run("dilation", "--config-file", RFCN, "--weights", missing, *OVERRIDES)
    with pytest.raises(SystemExit, match="test_analyze.py is not a weights file"):
        run("sampling", "--config-file", RFCN, "--weights", __file__, *OVERRIDES)
    with pytest.raises(SystemExit, match="1 weights for 2 configs"):
        run("complexity", "--config-file", RFCN, PLAIN, "--weights", missing)
    with pytest.raises(SystemExit):
        run("sampling", "--config-file", RFCN, "--weights", missing, "--images")


def test_a_plain_network_has_no_samples_to_show(run, weights, image):
    given = *OVERRIDES, "--config-file", PLAIN, "--weights", weights(PLAIN), "--images", image
    with pytest.raises(SystemExit, match="analyze sampling: this network has no deformable"):
        run("sampling", *given)


@pytest.mark.parametrize("yaml", [RFCN, FASTER])
def test_complexity_on_fixed_proposals(run, yaml):
    joint = "--config-file", yaml, "--no-time", *OVERRIDES
    fixed = *joint, *FIXED
    parts = [run("complexity", *o)["networks"][0]["parameters"] for o in (joint, fixed)]
    assert parts[0]["total"] - parts[1]["total"] == parts[0]["proposal_generator"] > 0
    assert parts[1]["roi_heads"] > 0 and "proposal_generator" not in parts[1]


@pytest.mark.parametrize("yaml", [RFCN, FASTER])
def test_dilation_on_fixed_proposals(run, weights, yaml):
    given = *OVERRIDES, *FIXED, "--config-file", yaml, "--weights", weights(yaml, *FIXED)
    result = run("dilation", *given, "--max-images", 1, "--pictures", 0)
    assert sum(row["deformable"] for row in result["layers"].values()) == 3


def test_sampling_on_fixed_proposals_is_refused(run, weights, image):
    given = *OVERRIDES, *FIXED, "--config-file", RFCN, "--weights", weights(RFCN, *FIXED)
    with pytest.raises(SystemExit, match="analyze sampling: .* give it its own RPN"):
        run("sampling", *given, "--images", image)
