"""d2-deformable predict, from the command line to its files."""

import json

import pytest

from d2_deformable.cli.main import main


def test_a_folder_with_a_broken_file(photos, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as error:
        main(["predict", str(photos), "--output", str(out), "--device", "cpu"])
    assert error.value.code == ("d2-deformable predict: could not read 1 of 3 files, see above")
    assert "2 images, " in capsys.readouterr().out
    found = json.loads((out / "predictions.json").read_text())
    assert [len(one["boxes"]) > 0 for one in found] == [True, True]
    assert (out / "images/sub/b.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg"], "missing.jpg: no such file"),
        (["{photos}", "--save", "xml"], "cannot save xml"),
        (["{photos}", "--batch", "0"], "--batch is 0; expected 1 or more"),
        (["{photos}", "--model", "no_such"], "no_such"),
    ],
)
def test_a_mistake_is_one_line(photos, arguments, message):
    with pytest.raises(SystemExit) as error:
        main(["predict", *(argument.format(photos=photos) for argument in arguments)])
    assert message in error.value.code and "\n" not in error.value.code
