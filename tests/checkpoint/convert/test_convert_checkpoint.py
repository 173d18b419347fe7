"""Files that `convert_checkpoint` overwrites and input that it refuses, for every kind of file."""

import pytest
import torchvision
from converted import FPN

from d2_deformable.checkpoint import write_weights
from d2_deformable.checkpoint.convert import ConversionError, convert_checkpoint
from d2_deformable.engine import read_config

SHALLOW = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
SETTINGS = ["INPUT.FORMAT", "RGB", "MODEL.RESNETS.STRIDE_IN_1X1", "False"]
SETTINGS += ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"]
SETTINGS += ["MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"]


@pytest.fixture
def source(tmp_path):
    write_weights(torchvision.models.resnet18().state_dict(), tmp_path / "source.pth")
    return tmp_path / "source.pth"


def convert(source, target, overrides=(), config=FPN, **kwargs):
    cfg = read_config(config, [*SHALLOW, *overrides])
    return convert_checkpoint("torchvision", source, target, cfg, config_file=config, **kwargs)


def test_a_yaml_of_other_weights_is_replaced(source, tmp_path):
    """Otherwise a second conversion's weights would be used with the first one's settings."""
    convert(source, tmp_path / "b.pth", ["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"])
    old = (tmp_path / "b.yaml").read_text()
    conversion = convert(source, tmp_path / "b.pth", [*SETTINGS, "MODEL.ROI_HEADS.NUM_CLASSES", 7])
    assert conversion.written == [tmp_path / "b.pth", tmp_path / "b.yaml"]
    assert (tmp_path / "b.yaml").read_text() != old
    assert read_config(tmp_path / "b.yaml").MODEL.ROI_HEADS.NUM_CLASSES == 7


def test_inputs_are_not_overwritten(source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(ConversionError, match="source.pth is an input and would be over"):
        convert(source, source)
    config = tmp_path / "net.yaml"
    config.write_text(f"_BASE_: {FPN}\n")
    with pytest.raises(ConversionError, match="net.yaml is an input and would be over"):
        convert(source, tmp_path / "net.pth", config=config)
    assert config.read_text() == f"_BASE_: {FPN}\n" and source.read_bytes() == before
    assert not (tmp_path / "net.pth").exists()


def test_names_to_keep(source, tmp_path):
    """A single name is not split into its letters, and a misspelt name keeps nothing."""
    stem = "backbone.bottom_up.stem"
    conversion = convert(source, tmp_path / "b.pth", keep=stem)
    assert "backbone.bottom_up.res2.0.conv1.weight" in conversion.weights
    assert f"{stem}.conv1.weight" not in conversion.weights
    with pytest.raises(ConversionError, match="1 names to keep match none in the model: steem"):
        convert(source, tmp_path / "c.pth", keep=["steem"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.BACKBONE.NAME", "build_nothing", "KeyError: .*build_nothing"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "-3", "RuntimeError: .*negative dimension"),
    ],
)
def test_a_config_that_builds_no_model(source, tmp_path, key, value, message):
    with pytest.raises(ConversionError, match=rf"the config builds no model \({message}"):
        convert(source, tmp_path / "b.pth", [key, value])
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_safetensors_are_as_readable_as_pth(source, tmp_path):
    pytest.importorskip("safetensors")
    for name in ("b.pth", "b.safetensors"):
        convert(source, tmp_path / name)
    modes = [(tmp_path / name).stat().st_mode for name in ("b.pth", "b.safetensors")]
    assert modes[0] == modes[1]
