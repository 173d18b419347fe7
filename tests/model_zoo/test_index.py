"""Users' index files: found by name, refused in one sentence, and no file is used unverified."""

import http.server
import json
import random
import shutil
import threading
import time
from functools import partial

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from d2_deformable import model_zoo
from d2_deformable.model_zoo import catalog
from d2_deformable.model_zoo.index import parse_index
from d2_deformable.utils.files import sha256

PACKAGED = "quick/warped_shapes_rfcn_R_18.yaml"
TRAINED = "model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Remove what a test registers after the test."""
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.delenv(catalog.VARIABLE, raising=False)


@pytest.fixture
def lab(tmp_path):
    """A folder that has the packaged checkpoint under another name, its YAML and an index."""
    folder = tmp_path / "lab"
    (folder / "acme").mkdir(parents=True)
    ours = PathManager.get_local_path(model_zoo.get_checkpoint_url(TRAINED))
    shutil.copyfile(ours, folder / "acme/shapes.pth")
    (folder / "shapes.yaml").write_text(f"_BASE_: {model_zoo.get_config_file(TRAINED)}\nSEED: 7\n")
    write(folder)
    return folder


def write(folder, name="acme/shapes.pth", config="shapes.yaml", **fields):
    file = folder / "acme/shapes.pth"
    entry = {"config": config, "sha256": sha256(file), **fields}
    entry = {key: value for key, value in entry.items() if value is not None}
    (folder / "index.json").write_text(json.dumps({name: entry}))
    return folder / "index.json"


def test_a_checkpoint_of_ones_own(lab):
    assert model_zoo.register_index(lab / "index.json") == ["acme/shapes.pth"]
    assert "acme/shapes.yaml" in model_zoo.list_configs()
    assert model_zoo.get_config_file("acme/shapes.yaml") == str(lab / "shapes.yaml")
    cfg = model_zoo.get_config("acme/shapes.yaml", trained=True)
    assert (cfg.SEED, cfg.MODEL.WEIGHTS) == (7, "d2_deformable://acme/shapes.pth")
    model = model_zoo.get("acme/shapes.yaml", trained=True, device="cpu")
    ours = model_zoo.get(TRAINED, trained=True, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters()))
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)  # as any trainer does
    assert model_zoo.register_index(lab / "index.json") == ["acme/shapes.pth"], "once more"


def test_a_packaged_config_and_a_location(lab):
    index = write(lab, "acme/r18.pth", PACKAGED, url="./acme/shapes.pth")
    with pytest.raises(ValueError, match="no checkpoint of"):
        model_zoo.get_checkpoint_url(PACKAGED)
    model_zoo.register_index(index)
    assert model_zoo.get_config(PACKAGED, trained=True).MODEL.WEIGHTS == (
        "d2_deformable://acme/r18.pth"
    )
    assert PathManager.get_local_path("d2_deformable://acme/r18.pth") == str(
        lab / "acme/shapes.pth"
    )
    assert PACKAGED in model_zoo.list_configs()


def test_a_relative_path_stays_where_it_was(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    model_zoo.register_index("index.json")
    monkeypatch.chdir(tmp_path)
    assert model_zoo.get_config_file("acme/shapes.yaml") == str(lab / "shapes.yaml")
    assert PathManager.get_local_path("d2_deformable://acme/shapes.pth").startswith(str(lab))


def test_by_the_environment(lab, monkeypatch):
    monkeypatch.setenv(catalog.VARIABLE, f"{lab}/index.json, ")
    assert PathManager.get_local_path("d2_deformable://acme/shapes.pth")
    monkeypatch.setenv(catalog.VARIABLE, f"{lab}/none.json")
    with pytest.raises(FileNotFoundError, match="none.json: there is no.*variable D2_DEFORMABLE_I"):
        model_zoo.list_configs()


@pytest.mark.parametrize("url", [None, "elsewhere.pth"])
def test_another_file_is_never_returned(lab, url):
    model_zoo.register_index(write(lab, url=url))
    (lab / (url or "acme/shapes.pth")).write_bytes(b"not it")
    with pytest.raises(OSError, match="is not the checkpoint acme/shapes.pth .*correct .*index.js"):
        PathManager.get_local_path("d2_deformable://acme/shapes.pth")
    with pytest.raises(OSError, match="is not the checkpoint"):
        model_zoo.get("acme/shapes.yaml", trained=True)
    (lab / (url or "acme/shapes.pth")).unlink()
    with pytest.raises(OSError, match="but it is no file"):
        PathManager.get_local_path("d2_deformable://acme/shapes.pth")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "shapes.pth"}, "'shapes.pth' must be a name of the form namespace/name.pth"),
        ({"name": "acme/../x.pth"}, r"'acme/../x.pth' must be a name of the form"),
        ({"config": None}, "'acme/shapes.pth', field config: expected .* got None"),
        ({"config": 3}, "field config: expected the path of a .yaml, got 3"),
        ({"config": "none.yaml"}, "field config: 'none.yaml' is neither a config of this package"),
        ({"sha256": None}, "'acme/shapes.pth', field sha256: expected 64 hexadecimal .* got None"),
        ({"sha256": "585af5"}, "field sha256: .* got '585af5'"),
        ({"url": ["a"]}, r"field url: expected a URL, .* got \['a'\]"),
        ({"url": ""}, "field url: expected a URL, .* got ''"),
        ({"url": "../x.pth"}, "field url: '../x.pth' leads out of the folder of the index"),
        ({"url": "a/../../x.pth"}, "field url: 'a/../../x.pth' leads out"),
        ({"url": "/etc/passwd"}, "field url: '/etc/passwd' leads out"),
        ({"url": "x://../../x.pth"}, "field url: 'x://../../x.pth' leads out"),
        ({"config": "../shapes.yaml"}, "field config: '../shapes.yaml' leads out"),
        ({"config": "/etc/shapes.yaml"}, "field config: '/etc/shapes.yaml' leads out"),
        ({"config": "x" * 300 + ".yaml"}, "field config: 'xxx.*' is neither a config"),
        ({"url": ["a" * 10**6]}, r"field url: expected a URL, .{,300}$"),
    ],
)
def test_a_malformed_entry(lab, change, message):
    with pytest.raises(ValueError, match=f"index.json: .*{message}"):
        model_zoo.register_index(write(lab, **change))
    assert catalog._registered == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not an index of a model zoo: Expecting value"),
        ("[]", "expected {name: entry, ...}"),
        ("[" * 100_000, "is not an index of a model zoo"),
        ('{"a/b": 1}', "'a/b' must be a mapping of fields, not 1"),
        ('{"a/b": {}, "a/b": {}}', "'a/b' appears twice in it"),
        ('{"a/b": ' + "9" * 5000 + "}", "is not an index of a model zoo"),
    ],
)
def test_a_malformed_file(lab, text, message):
    (lab / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        model_zoo.register_index(lab / "index.json")


def test_an_ap_that_is_no_percentage(lab):
    for ap in (10**400, float("inf"), float("nan"), "1", -1e9):
        model_zoo.register_index(write(lab, AP=ap))
        assert model_zoo.summary("acme/shapes.yaml")["AP"] is None


def test_many_entries_in_linear_time(lab):
    entry = {"config": PACKAGED, "sha256": "0" * 64}
    names = [f"acme/n{i}.pth" for i in range(20_000)]
    (lab / "index.json").write_text(json.dumps(dict.fromkeys(names, entry)))
    start = time.process_time()
    assert list(parse_index(lab / "index.json")) == names
    assert time.process_time() - start < 15


def test_damaged_files(lab):
    """Any changed byte gives one ValueError or a complete index."""
    good = (lab / "index.json").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] = chance.randrange(256)
        (lab / "index.json").write_bytes(bad[: chance.randrange(len(bad) * 3)])
        try:
            model_zoo.register_index(lab / "index.json")
        except ValueError as error:
            refused += 1
            assert str(lab / "index.json") in str(error)
    assert 100 < refused < 300


def test_conflicts(lab, tmp_path):
    model_zoo.register_index(lab / "index.json")
    other = shutil.copytree(lab, tmp_path / "other")
    with pytest.raises(ValueError, match=f"'acme/shapes.pth' is the name of a .* {lab}/index.json"):
        model_zoo.register_index(other / "index.json")
    with pytest.raises(ValueError, match=f"'a/b.pth', field config: {TRAINED} has the checkpoint"):
        model_zoo.register_index(write(other, "a/b.pth", TRAINED))
    assert len(catalog._registered) == 1


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json: there is no such index file"):
        model_zoo.register_index(tmp_path / "none.json")
    with pytest.raises(OSError, match="this index file cannot be read"):
        model_zoo.register_index(tmp_path)


@pytest.fixture
def served(lab, tmp_path, monkeypatch):
    """A server of the lab's folder."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=lab)
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_index_on_a_server(lab, served):
    (lab / "shapes.yaml").write_text("SEED: 7\n")
    assert model_zoo.register_index(f"{served}/index.json") == ["acme/shapes.pth"]
    assert model_zoo.get_config("acme/shapes.yaml").SEED == 7
    (lab / "shapes.yaml").write_text("SEED: 8\n")
    assert model_zoo.get_config("acme/shapes.yaml").SEED == 8, "not an old copy"
    url = model_zoo.get_checkpoint_url("acme/shapes.yaml")
    file = PathManager.get_local_path(url)
    assert sha256(file) == sha256(lab / "acme/shapes.pth")

    # A new version: the cache still holds the old file.
    (lab / "acme/shapes.pth").write_bytes(b"the next one")
    write(lab)
    model_zoo.register_index(f"{served}/index.json")
    with PathManager.open(url, "rb") as content:
        assert content.read() == b"the next one"

    # A file that changes under its sha256.
    (lab / "acme/shapes.pth").write_bytes(b"something else")
    with open(file, "wb") as cached:
        cached.write(b"broken")
    with pytest.raises(OSError, match=f"is not the checkpoint.*correct {served}/index.json"):
        PathManager.get_local_path(url)


def test_a_server_without_them(served, lab):
    with pytest.raises(OSError, match=f"{served}/none.json: this index file cannot be read: .*404"):
        model_zoo.register_index(f"{served}/none.json")
    model_zoo.register_index(write(lab, url=f"{served}/none.pth"))
    with pytest.raises(OSError, match=f"{served}/none.pth cannot be fetched: .*404"):
        PathManager.get_local_path("d2_deformable://acme/shapes.pth")
