import pytest

from d2_deformable.engine import read_config


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        (tmp_path / "net.yaml").write_text(text)
        return read_config(str(tmp_path / "net.yaml"), overrides)

    return read


def test_the_command_line_wins(read):
    cfg = read("VERSION: 2\nTEST: {VOC_METRIC: '07'}\nSEED: 4", "SEED", "5")
    assert (cfg.TEST.VOC_METRIC, cfg.SEED) == ("07", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "VERSION: 2\nMODEL: {RESNETS: {DEFORM_NUM_LAYER: 3}}",
            "net.yaml, .*no key MODEL.RESNETS.DEFORM_NUM_LAYER; "
            "did you mean MODEL.RESNETS.DEFORM_NUM_LAYERS",
        ),
        ("VERSION: 2\nTEST: {BOX_AVERGE: {}}", "did you mean TEST.BOX_AVERAGE"),
        ("VERSION: 2\nXYZXYZ: 1", "net.yaml, or what it builds on: there is no key XYZXYZ$"),
        (
            "VERSION: 2\nTEST: {VOC_METRIC: 07}",
            "TEST.VOC_METRIC is 7 .int.; expected str, such as .*. Quote a string .* e.g. '07'",
        ),
        ("VERSION: 2\nSEED: x", "net.yaml, .*SEED is x .str.; expected int, such as -1$"),
        ("MODEL: [1", "net.yaml, .* no YAML of keys and values: while parsing .*, line 1, column"),
        ("- MODEL", "net.yaml, .* no YAML of keys and values: "),
        ("", "net.yaml, .* no YAML of keys and values: "),
        ("MODEL: 3", "net.yaml, .* no YAML of keys and values: "),
    ],
)
def test_a_wrong_yaml_is_one_message(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_a_wrong_override_is_one_message(read):
    with pytest.raises(ValueError, match="^config override: there is no key SEEED; .* SEED"):
        read("VERSION: 2", "SEEED", "5")
    with pytest.raises(ValueError, match="^config override: Override list has odd length"):
        read("VERSION: 2", "SEED")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="^nowhere.yaml: there is no such file"):
        read_config("nowhere.yaml")


def test_a_missing_base_is_named(read):
    with pytest.raises(FileNotFoundError, match="net.yaml builds on .*gone.yaml .* no such file"):
        read("_BASE_: gone.yaml")
