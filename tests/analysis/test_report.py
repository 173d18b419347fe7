import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.colormap import colormap
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from browser import faults_of, needs_chromium
from d2_deformable import add_deformable_config
from d2_deformable.analysis import report, report_pictures
from d2_deformable.analysis.record import inspect_image
from d2_deformable.analysis.segmentation import draw_segmentation
from d2_deformable.cli import report as report_command
from d2_deformable.cli.main import main

QUICK = Path(__file__).parents[2] / "configs" / "quick"
EVIL = "<script>alert('&')</script>"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.REDUCED_CHANNELS", 16),
    *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "DATASETS.CUSTOM", {}),
]


@pytest.fixture
def dataset(tmp_path):
    """A registered data set of three images, without annotations or class names."""
    name = "report_test"
    records = []
    for i, size in enumerate([(40, 40), (90, 60), (64, 80)]):
        file = tmp_path / f"image&{i}.png"
        Image.new("RGB", size, (200, 60 * i, 90)).save(file)
        records.append({"file_name": str(file), "image_id": i, "width": size[0], "height": size[1]})
    DatasetCatalog.register(name, lambda: records)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


@pytest.fixture
def make_run(tmp_path, dataset):
    """make_run(file) -> OUTPUT_DIR of a run whose network is random."""

    def make_run(file):
        cfg = get_cfg()
        add_deformable_config(cfg)
        cfg.merge_from_file(str(QUICK / file))
        cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", (), "DATASETS.TEST", (dataset,)])
        if "deeplab" in file:
            cfg.MODEL.RESNETS.REDUCED_CHANNELS = 0
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
        lines = [
            {"iteration": 19, "total_loss": 3.0, "loss_cls": 2.0, "lr": 0.1, "time": 0.5},
            {"iteration": 20, "bbox/AP": 61.54, f"voc/AP50-{EVIL}": float("nan")},
        ]
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make_run


@pytest.fixture
def two_objects(monkeypatch):
    """Make every image show two objects; a random network might find none."""

    def inspect(model, inputs):
        inspection = inspect_image(model, inputs)
        found = Instances(inspection.image_size)
        found.pred_boxes = Boxes(torch.tensor([[2.0, 3, 20, 30], [10, 10, 30, 25]]))
        found.scores = torch.tensor([0.6, 0.9])
        found.pred_classes = torch.tensor([1, 0])
        return type(inspection)(inspection.record, found, inspection.image_size, inspection.pixel)

    monkeypatch.setattr(report, "inspect_image", inspect)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("head", ["rfcn", "faster_rcnn"])
def test_report_of_a_deformable_network(make_run, two_objects, head):
    folder = make_run(f"warped_shapes_{head}_R_18_dconv3_dpool.yaml")
    (folder / "pictures").mkdir()
    report_pictures.save_picture(
        Figure(), folder / "pictures" / "9_old.png", "of an earlier report"
    )
    statistics = {"outside": 0.25, "p99": 3.5, "std": 0.5, "mean": 1.125}
    line = {f"offsets/backbone.res5.1.conv2/{k}": v for k, v in statistics.items()}
    with (folder / "metrics.json").open("a") as lines:
        lines.write(json.dumps({"iteration": 21, **line}))
    file = report.write_report(folder, num_images=2)
    assert file == folder / "report.html"
    kinds = ("detections", "parts", "sampling_points")
    names = [f"{i}_{kind}.png" for i in range(2) for kind in kinds]
    names += ["curves.png", "effective_dilation.png"]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == names

    page = Page(file)
    assert "layermeanstdp99outsidebackbone.res5.0.conv2––––" in page.text
    assert "backbone.res5.1.conv21.1250.5003.5000.250" in page.text
    assert "over 3 images" in page.text and "no deformable layer" not in page.text
    assert "image&0.png" in page.text and "image&2.png" in page.text
    assert "729 red points" in page.text
    assert "On 3 images of report_test." in page.text and "61.5" in page.text
    assert "also that of the plain layers among them" in page.text
    assert "20 iterations of 4 images, 10 seconds" in page.text
    assert "RES5_DILATION: 2" in page.text  # the full config
    images = [value for name, value in page.attributes if name == "src"]
    assert len(images) == 8
    data = base64.b64decode(images[2].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == Image.open(folder / "pictures" / names[0]).size


def test_report_is_self_contained_and_escaped(make_run, two_objects):
    page = Page(report.write_report(make_run("warped_shapes_rfcn_R_18.yaml"), num_images=1))
    assert not {"script", "link", "iframe", "base", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in {"src", "href", "srcset", "data", "action", "poster"}:
            assert value.startswith("data:image/jpeg;base64,")
    assert "url(" not in page.text and "@import" not in page.text  # the style sheet
    assert EVIL in page.text


def test_the_policy_allows_the_page_and_nothing_else(make_run, two_objects):
    file = report.write_report(make_run("warped_shapes_rfcn_R_18.yaml"), num_images=1)
    text = file.read_text(encoding="utf-8")
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', text)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        *("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"),
        f"style-src 'sha256-{digest}'",
    ]
    assert not re.search(r"<[^>]* (style|on\w+)\s*=", text), "the policy forbids these"


@pytest.fixture
def photographs(tmp_path):
    """A folder of pictures that no report wrote, one of them by matplotlib; {path: content}."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    info = PngImagePlugin.PngInfo()
    info.add_text("Source", "d2_deformable")
    Image.new("RGB", (9, 9)).save(folder / "holiday.png", pnginfo=info)
    Image.new("RGB", (9, 9)).save(folder / "7_detections.png")
    Figure().savefig(folder / "plot.png")
    (folder / "empty.png").touch()
    (folder / "gone.png").symlink_to("nowhere.png")
    return folder


def contents(folder) -> dict:
    return {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_pictures_of_the_user_stay(make_run, two_objects, photographs, kind):
    folder = make_run("warped_shapes_faster_rcnn_R_18.yaml")
    before = contents(photographs)
    if kind == "link":
        (folder / "pictures").symlink_to(photographs)
    else:
        shutil.copytree(photographs, folder / "pictures", symlinks=True)
    pictures = folder / "pictures"
    report.write_report(folder, num_images=2)
    assert before.items() <= contents(pictures).items()
    assert (pictures / "1_detections.png").is_file()
    # A link to a picture of a report is not one, nor is the file that it leads to.
    (pictures / "1_detections.png").rename(folder / "mine.png")
    (pictures / "linked.png").symlink_to(folder / "mine.png")
    report.write_report(folder, num_images=1)
    assert {**before, "linked.png": True}.keys() <= contents(pictures).keys()
    assert (folder / "mine.png").is_file()
    assert (pictures / "0_detections.png").is_file()
    assert not (pictures / "1_detections.png").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "file"])
def test_a_picture_of_the_user_is_not_overwritten(tmp_path, kind):
    mine, file = tmp_path / "mine.png", tmp_path / "pictures/curves.png"
    file.parent.mkdir()
    Image.new("RGB", (9, 9)).save(mine)
    before = mine.read_bytes()
    if kind == "link":
        file.symlink_to(mine)
    elif kind == "file":
        file.write_bytes(before)
    else:
        file.mkdir()
    with pytest.raises(FileExistsError, match="curves.png: this file, which no report wrote"):
        report_pictures.save_picture(Figure(), file, "")
    assert mine.read_bytes() == before
    assert kind != "file" or file.read_bytes() == before


def test_a_name_that_is_not_utf_8(make_run, two_objects, dataset, tmp_path):
    MetadataCatalog.get(dataset).thing_classes = ["\udcff", "\x00"]
    for record in DatasetCatalog.get(dataset):
        renamed = tmp_path / f"\udcff{record['image_id']}.png"
        Path(record["file_name"]).rename(renamed)
        record["file_name"] = str(renamed)
    page = report.write_report(make_run("warped_shapes_rfcn_R_18.yaml"), num_images=1)
    assert "?1.png" in page.read_text(encoding="utf-8")


@needs_chromium
def test_report_in_a_browser(make_run, two_objects, dataset):
    MetadataCatalog.get(dataset).thing_classes = [EVIL, "$", "_", "w" * 60]
    page = report.write_report(make_run("warped_shapes_rfcn_R_18_dconv3_dpool.yaml"), num_images=1)
    # From a folder of its own: it needs no other file.
    alone = page.parent / "alone"
    alone.mkdir()
    shutil.move(page, alone)
    assert not faults_of(alone, ["report.html"])


def test_report_of_a_plain_network_shows_detections_only(make_run, two_objects):
    folder = make_run("warped_shapes_faster_rcnn_R_18.yaml")
    (folder / "metrics.json").unlink()
    page = Page(report.write_report(folder, num_images=1))
    assert [path.name for path in (folder / "pictures").iterdir()] == ["0_detections.png"]
    assert "This network has no deformable layer, and so no offsets" in page.text
    assert "This run was not evaluated" in page.text


@pytest.fixture
def evaluable_run(make_run, tmp_path, monkeypatch):
    """OUTPUT_DIR of a run whose test set has two images with annotations."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = make_run("warped_shapes_rfcn_R_18_dconv3_dpool.yaml")
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    fields = {"FORMAT": "warped_shapes", "SPLIT": "val", "NUM_IMAGES": 2, "IMAGE_SIZE": 64}
    cfg["DATASETS"].update(TEST=["two_shapes"], CUSTOM={"two_shapes": fields})
    (folder / "config.yaml").write_text(yaml.dump(cfg))
    return folder


def test_another_checkpoint_is_shown_beside(evaluable_run, two_objects, tmp_path, monkeypatch):
    folder = evaluable_run
    own = torch.load(folder / "model_final.pth")["model"]
    torch.save({"model": {name: value / 2 for name, value in own.items()}}, tmp_path / "<b>.pth")
    inspect, weights = report.inspect_image, []

    def spy(model, inputs):
        weights.append(model.state_dict()["proposal_generator.rpn_head.conv.weight"].clone())
        return inspect(model, inputs)

    monkeypatch.setattr(report, "inspect_image", spy)
    beside = str(tmp_path / "<b>.pth")
    page = Page(report.write_report(folder, num_images=1, beside=beside))
    run, other = weights
    assert torch.equal(run, own["proposal_generator.rpn_head.conv.weight"])
    assert torch.equal(other, run / 2)
    kinds = ("detections", "parts", "sampling_points")
    names = [*(f"0_beside_{kind}.png" for kind in kinds), *(f"0_{kind}.png" for kind in kinds)]
    names += ["curves.png", "effective_dilation.png"]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == names
    assert "61.5" in page.text and f"COCO of {beside}" in page.text
    assert f"VOC of {beside}" in page.text
    assert "h4" in page.tags and "b" not in page.tags


def test_a_checkpoint_of_another_network_is_refused(evaluable_run):
    folder = evaluable_run
    weights = torch.load(folder / "model_final.pth")["model"]
    plain = {name: value for name, value in weights.items() if "conv_offset" not in name}
    torch.save({"model": plain}, folder / "plain.pth")
    with pytest.raises(SystemExit, match="report: .*another network.*: 6 not in the file"):
        main(["report", str(folder), "--beside", str(folder / "plain.pth")])
    with pytest.raises(SystemExit, match="^d2-deformable report: .*gone.pth: no such checkpoint"):
        main(["report", str(folder), "--beside", str(folder / "gone.pth")])
    (folder / "plain.pth").rename(folder / "model_final.pth")
    with pytest.raises(SystemExit, match="report: .*model_final.pth is from another network"):
        main(["report", str(folder)])


def test_report_of_images_where_nothing_is_found(make_run):
    folder = make_run("warped_shapes_rfcn_R_18_dconv3_dpool.yaml")
    page = Page(report.write_report(folder, num_images=9, score_thresh=0.99))
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    sampling = [f"{i}_sampling_points.png" for i in range(3)]
    assert pictures == [*sampling, "curves.png", "effective_dilation.png"]
    assert page.text.count("Nothing was detected with a score of 99% or more") == 3


def test_detections_above_the_threshold_come_best_first():
    found = Instances((8, 8))
    found.scores = torch.tensor([0.4, 0.6, 0.5, 0.9])
    inspection = type("Inspection", (), {"instances": found})
    assert report.found_above(inspection, 0.5).scores.tolist() == pytest.approx([0.9, 0.6, 0.5])


@pytest.mark.parametrize("variant", ["", "_dconv3"])
def test_report_of_a_segmentation(make_run, dataset, variant, tmp_path):
    for record in DatasetCatalog.get(dataset):
        record["sem_seg_file_name"] = f"{record['file_name']}.mask.png"
        size = (record["width"], record["height"])
        Image.new("L", size, 255).save(record["sem_seg_file_name"])
    MetadataCatalog.get(dataset).set(stuff_classes=["sky", "sea"], ignore_label=255)
    folder = make_run(f"dubai_seg_deeplab_R_18{variant}.yaml")
    line = {"iteration": 21, "sem_seg/mIoU": 31.25, "sem_seg/IoU-sea": 20.0}
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps(line))
    file = report.write_report(
        folder, num_images=2, overrides=["TEST.SEM_SEG_RESOLUTION", "resized_ground_truth"]
    )
    kinds = ["sampling_points"] * bool(variant) + ["segmentation"]
    names = [f"{i}_{kind}.png" for i in range(2) for kind in kinds] + ["curves.png"]
    names += ["effective_dilation.png"] * bool(variant)
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == names
    text = Page(file).text
    assert "31.2" in text and "sea" in text and "predicted and true" in text
    assert "Nothing was detected" not in text
    assert ("This network has no deformable layer" in text) == (not variant)


def test_picture_of_a_segmentation():
    """Ignored pixels and pixels of classes without a name are not coloured."""
    image = np.full((4, 6, 3), 100, np.uint8)
    labels, truth = np.zeros((4, 6), np.int64), np.full((4, 6), 255, np.uint8)
    truth[0] = 1
    figure = draw_segmentation(image, torch.from_numpy(labels), truth, ["sky", "sea"])
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes}
    sky, sea = (0.4 * 100 + 0.6 * colormap(rgb=True)[k] for k in (0, 1))
    assert np.array_equal(shown["image"], image)
    assert np.allclose(shown["predicted"], sky, atol=1)
    assert np.allclose(shown["ground truth"][0], sea, atol=1)
    assert np.array_equal(shown["ground truth"][1:], image[1:])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "sea"]


def test_classes_without_names_are_numbered(dataset):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert report.class_names(cfg, dataset) == ["class 0", "class 1", "class 2"]
    MetadataCatalog.get(dataset).thing_classes = ["cat", "dog"]
    assert report.class_names(cfg, dataset) == ["cat", "dog", "class 2"]
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "SemanticSegmentor", 2
    assert report.class_names(cfg, dataset) == ["class 0", "class 1"]
    MetadataCatalog.get(dataset).stuff_classes = ["sky", "sea"]
    assert report.class_names(cfg, dataset) == ["sky", "sea"]


def test_tables_take_all_columns():
    html = report._table("class", {"cat": {"AP": 1.25}, "dog": {"x": 4.0, "AP50": 3.0, "AP": 2.0}})
    assert "<th>class</th><th>AP</th><th>AP50</th><th>x</th>" in html
    assert "<th>cat</th><td>1.2</td><td>–</td><td>–</td>" in html
    assert "<th>dog</th><td>2.0</td><td>3.0</td><td>4.0</td>" in html
    html = report._table("", {"COCO": {"images": 5000.0, "AP": 1.25}})
    assert "<th></th><th>AP</th><th>images</th></tr>" in html
    assert "<td>1.2</td><td>5,000</td>" in html


def test_the_command_says_in_a_sentence_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="^d2-deformable report: .* holds no config.yaml"):
        main(["report", str(tmp_path), "--num-images", "2", "MODEL.DEVICE", "cpu"])


def test_the_command_says_in_a_sentence_what_is_unknown(make_run):
    folder = str(make_run("warped_shapes_rfcn_R_18.yaml"))
    with pytest.raises(SystemExit, match="report: config override: .* mean MODEL.DEVICE"):
        main(["report", folder, "MODEL.DEVISE", "cpu"])


def test_the_command_takes_options_before_and_after_the_folder(monkeypatch):
    calls = []
    monkeypatch.setattr(report_command, "write_report", lambda *args: calls.append(args))
    main(["report", "out", "--num-images", "2", "MODEL.DEVICE", "cpu"])
    main(["report", "--score-thresh", "0.3", "--beside", "a.pth", "out"])
    assert calls == [("out", 2, 0.5, ["MODEL.DEVICE", "cpu"], ""), ("out", 4, 0.3, [], "a.pth")]
