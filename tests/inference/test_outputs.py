"""Files of results: their content, and continuing an interrupted run."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from d2_deformable.inference.draw import index_image
from d2_deformable.inference.outputs import OutputFolder
from d2_deformable.inference.predictor import Prediction
from d2_deformable.inference.run import predict_files
from d2_deformable.inference.sources import find_inputs
from d2_deformable.inference.video import VideoReader

NAMES = ["disc", "star"]
IMAGE = np.full((40, 80, 3), 120, np.uint8)
SETTINGS = {"model": "m", "threshold": 0.5}
KINDS = ["images", "json", "coco", "csv", "txt"]


class Stub:
    """A predictor that finds one star, in the left half, and counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, images, files):
        self.calls.append(len(images))
        return [found(str(file), *image.shape[:2]) for image, file in zip(images, files)]


def found(file, height=40, width=80):
    box = [0.0, 10.0, width / 2, height - 10.0]
    return Prediction(file, width, height, [box], [0.75], [1], ["star"])


@pytest.fixture
def files(tmp_path):
    """Two images, one of them in a subfolder, a broken one, and a video of five frames."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(IMAGE).save(folder / "a.png")
    Image.fromarray(IMAGE).save(folder / "sub/a.webp")
    (folder / "broken.jpg").touch()
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (80, 40))
    for _ in range(5):
        video.write(IMAGE)
    video.release()
    return find_inputs(folder)


def run(tmp_path, files, stub, batch=2, **options):
    folder = OutputFolder(tmp_path / "out", SETTINGS, NAMES, KINDS, files, **options)
    problems = predict_files(stub, files, folder, batch)
    folder.finish()
    return problems, list(folder.records())


def test_every_format(tmp_path, files):
    problems, records = run(tmp_path, files, Stub())
    assert len(problems) == 1 and "broken.jpg" in problems[0]
    out = tmp_path / "out"
    assert json.loads((out / "predictions.json").read_text()) == records
    images = [record for record in records if "frame" not in record and "frames" not in record]
    assert [record["file"] for record in images] == [str(files[0]), str(files[3])]
    assert images[0]["boxes"] == [[0.0, 10.0, 40.0, 30.0]] and images[0]["names"] == ["star"]

    with (out / "predictions.csv").open() as table:
        first = next(csv.DictReader(table))
    assert first["file"] == str(files[0]) and first["class"] == "star"
    assert [first[k] for k in ("x0", "y0", "x1", "y1", "score")] == [
        "0.0",
        "10.0",
        "40.0",
        "30.0",
        "0.75",
    ]
    assert (out / "labels/a.txt").read_text() == "1 0.250000 0.500000 0.500000 0.500000 0.75\n"

    coco = COCO(out / "predictions_coco.json")
    (image,) = [i for i in coco.loadImgs(coco.getImgIds()) if i["file_name"] == "sub/a.webp"]
    (one,) = coco.loadAnns(coco.getAnnIds(image["id"]))
    assert one["bbox"] == [0, 10, 40, 20] and one["area"] == 800 and one["score"] == 0.75
    assert coco.loadCats(one["category_id"])[0]["name"] == "star"

    for name in ("a.png", "sub/a.webp.png"):
        drawn = np.asarray(Image.open(out / "images" / name))
        changed = (drawn != IMAGE).any(axis=2)
        assert changed[30, :41].all() and not changed[32:, 42:].any()


def test_a_video_keeps_its_times(tmp_path, files):
    _, records = run(tmp_path, files, stub := Stub())
    frames = [record for record in records if "frame" in record]
    assert [(f["frame"], f["time"]) for f in frames] == [(i, i / 10) for i in range(5)]
    assert stub.calls == [2, 2, 2, 1]
    copy = VideoReader(tmp_path / "out/images/clip.mp4")
    assert copy.rate == 10 and len(list(copy)) == 5


def test_a_run_continues_where_it_was_interrupted(tmp_path, files):
    class Interrupted(Stub):
        def __call__(self, images, files):
            if sum(self.calls) >= 4:  # within the video
                raise KeyboardInterrupt
            return super().__call__(images, files)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, files, Interrupted(), batch=1)
    journal = tmp_path / "out/predictions.jsonl"
    with journal.open("a") as half:
        half.write('{"file": "half a li')
    assert not list((tmp_path / "out/images").glob("*clip*"))  # no half video
    _, records = run(tmp_path, files, stub := Stub(), resume=True)
    assert sum(stub.calls) == 5  # the video only
    _, expected = run(tmp_path, files, Stub())
    assert sorted(map(str, records)) == sorted(map(str, expected))
    _, again = run(tmp_path, files, stub := Stub(), resume=True)
    assert stub.calls == [] and again == expected


def test_a_run_that_reads_nothing_leaves_earlier_results(tmp_path, files):
    run(tmp_path, files, Stub())
    before = {file: file.read_bytes() for file in (tmp_path / "out").glob("*.json*")}
    broken = [file for file in files if file.name == "broken.jpg"]
    problems, records = run(tmp_path, broken, Stub())
    assert len(problems) == 1 and not records
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").glob("*.json*")}


def test_other_settings_do_not_continue(tmp_path, files):
    run(tmp_path, files, Stub())
    with pytest.raises(ValueError, match=r"other settings \(threshold\): choose another --output"):
        OutputFolder(
            tmp_path / "out", SETTINGS | {"threshold": 0.7}, NAMES, KINDS, files, resume=True
        )


def test_labels_of_pixels(tmp_path):
    labels = np.zeros((40, 80), np.uint8)
    labels[:, 40:] = 1
    folder = OutputFolder(tmp_path, SETTINGS, NAMES, KINDS, [tmp_path / "a.jpg"])
    folder.add(IMAGE, Prediction(str(tmp_path / "a.jpg"), 80, 40, labels=labels))
    folder.finish()
    (record,) = folder.records()
    assert record["pixels"] == {"disc": 1600, "star": 1600}
    mask = Image.open(tmp_path / record["mask"])
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), labels)
    drawn = np.asarray(Image.open(tmp_path / "images/a.jpg")).astype(int)
    assert abs(drawn[20, 20] - drawn[20, 60]).max() > 50


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot save xml; expected some of"):
        OutputFolder(tmp_path, SETTINGS, NAMES, ["json", "xml"], ["a.jpg"])


def test_inputs_that_share_a_stem_keep_their_own_labels(tmp_path):
    files = [tmp_path / "in" / name for name in ("a.jpg", "a.png", "b.png")]
    folder = OutputFolder(tmp_path / "out", SETTINGS, NAMES, ["txt"], files)
    for file in files:
        folder.add(IMAGE, found(str(file)))
    folder.finish()
    written = sorted(path.name for path in (tmp_path / "out/labels").iterdir())
    assert written == ["a.jpg.txt", "a.png.txt", "b.txt"]


def test_more_than_256_classes_need_16_bits():
    labels = np.array([[0, 299]], np.int32)
    assert np.array_equal(np.asarray(index_image(labels, 300)), labels)


def test_inputs_with_dots_write_inside_the_folder(tmp_path, files, monkeypatch):
    """in/sub/../../up.png lies beside in/; its results must not, and none replaces the input."""
    up = tmp_path / "work/up.png"
    (tmp_path / "work/here").mkdir(parents=True)
    Image.fromarray(IMAGE).save(up)
    Image.fromarray(IMAGE).save(tmp_path / "work/here/b.png")
    before = up.read_bytes()
    monkeypatch.chdir(tmp_path / "work/here")
    for inputs in (["b.png", "../up.png"], ["b.png", "../here/../up.png"]):
        folder = OutputFolder("out", SETTINGS, NAMES, KINDS, inputs)
        predict_files(Stub(), inputs, folder, 1)
        folder.finish()
        assert up.read_bytes() == before
        assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["here", "up.png"]
        images = {p.relative_to("out").as_posix() for p in folder.folder.rglob("*.png")}
        assert images == {"images/here/b.png", "images/up.png"}


@pytest.mark.parametrize("text", ["x", "[]", "{}", '{"settings": 5}', "[" * 100_000, "\0\xff"])
def test_a_damaged_journal(tmp_path, files, text):
    run(tmp_path, files, Stub())
    journal = tmp_path / "out/predictions.jsonl"
    journal.write_bytes(text.encode("latin-1") + b"\n{}\n")
    with pytest.raises(ValueError, match="predictions.jsonl: its first line is damaged"):
        run(tmp_path, files, Stub(), resume=True)
    journal.write_text(json.dumps({"settings": SETTINGS}) + "\n[5]\n")
    assert len(run(tmp_path, files, Stub(), resume=True)[1]) > 2
