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
        ("- MODEL", "net.yaml holds no keys; expected keys and values"),
        ("5", "net.yaml holds no keys"),
        ("", "net.yaml is empty; expected keys and values"),
        ("# nothing", "net.yaml is empty"),
        ("VERSION: x", "net.yaml: VERSION is x; expected 2"),
        ("VERSION: -3", "net.yaml: VERSION is -3; expected 2"),
        ("_BASE_: 5", "net.yaml: _BASE_ is no file name; expected a path"),
        ("_BASE_: [a.yaml, {b: 1}]", "net.yaml: _BASE_ is no file name"),
        ("_BASE_: ''", "net.yaml: _BASE_ is no file name"),
        (
            "VERSION: 2\nSOLVER: 5",
            "SOLVER is 5 .int.; expected keys and values, as it is a section$",
        ),
        ("VERSION: 2\nSEED: '" + "-" * 100_000 + "1'", "net.yaml, .* is nested too deeply"),
        ("VERSION: 2\nSEED: '" + "x" * 10**5 + "'", r"SEED is x{80}\.\.\. .str.; expected int"),
        (
            "VERSION: 2\nDATASETS: {CUSTOM: " + "{a: " * 300 + "1" + "}" * 301,
            "net.yaml .* 3.. deep",
        ),
        ("VERSION: 2\nSOLVER: {STEPS: " + "[" * 99 + "]" * 99 + "}", "net.yaml .* deep; expected"),
        ("MODEL: 3", "net.yaml, .* no YAML of keys and values: "),
    ],
)
def test_a_wrong_yaml_is_one_message(read, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_base_that_cannot_be_read_names_both(read):
    with pytest.raises(OSError, match="net.yaml, or what it builds on, cannot be read: .*too long"):
        read(f"_BASE_: {'a' * 5000}")
    with pytest.raises(OSError, match="net.yaml, or what it builds on, cannot be read: .*urlopen"):
        read("_BASE_: http://localhost:1/net.yaml")  # nobody listens


def test_a_wrong_override_is_one_message(read):
    with pytest.raises(ValueError, match="^config override: there is no key SEEED; .* SEED"):
        read("VERSION: 2", "SEEED", "5")
    with pytest.raises(
        ValueError,
        match="^config override: .* has no value, or a key before it .* --resume come before",
    ):
        read("VERSION: 2", "SEED")
    with pytest.raises(ValueError, match="^config override: a value is nested too deeply"):
        read("VERSION: 2", "SEED", "-" * 100_000 + "1")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="^nowhere.yaml: there is no such file"):
        read_config("nowhere.yaml")


def test_a_missing_base_is_named(read):
    with pytest.raises(FileNotFoundError, match="net.yaml builds on .*gone.yaml .* no such file"):
        read("_BASE_: gone.yaml")
