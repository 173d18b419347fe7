"""MODEL_ZOO.md lists every network of configs/ once, with a working link, and the numbers published
in the paper's tables 1, 3 and 5 and in the released code's README."""

import re
from pathlib import Path

import pytest

from yamls import CONFIGS, MODELS, relative

PAGE = (Path(__file__).parents[1] / "MODEL_ZOO.md").read_text()


def test_every_network_is_listed_once():
    links = re.findall(r"\[`(\S+)`\]\(configs/(\S+)\)", PAGE)
    assert all(Path(file).stem == name for name, file in links)
    assert sorted(file for _, file in links) == sorted(map(relative, MODELS))
    assert all((CONFIGS / file).is_file() for _, file in links)


# ---- Published numbers ---------------------------------------------------------------------------

LAYERS = ("", "_dconv1", "_dconv2", "_dconv3", "_dconv6")
DILATIONS = ("", "_atrous4", "_atrous6", "_atrous8", "_dconv3")
POOLING = ("_dpool", "_dconv3_dpool")

# The rows of tables 1 and 3 as printed: AP50 and AP70, or mIoU.
RESNET_101 = {
    "VOC-Detection/class_aware_rpn": [
        (LAYERS, "68.0 73.5 74.3 74.5 74.6", "44.9 54.4 56.3 57.2 57.7"),
        (DILATIONS, "68.0 72.8 73.6 73.2 74.5", "44.9 53.1 55.2 55.1 57.2"),
    ],
    "VOC-Detection/faster_rcnn": [
        (LAYERS, "78.1 78.6 78.5 78.6 78.7", "62.1 63.8 63.3 63.3 64.0"),
        (DILATIONS, "78.1 78.6 78.5 77.8 78.6", "62.1 63.1 62.3 61.8 63.3"),
        (POOLING, "78.3 79.3", "66.6 66.9"),
    ],
    "VOC-Detection/rfcn": [
        (LAYERS, "80.0 80.6 81.0 81.4 81.5", "61.8 63.0 63.8 64.7 65.4"),
        (DILATIONS, "80.0 80.5 80.2 80.3 81.4", "61.8 63.0 63.5 63.2 64.7"),
        (POOLING, "81.2 82.6", "65.0 68.5"),
    ],
    "VOC-SemanticSegmentation/deeplab": [
        (LAYERS, "69.7 73.9 74.8 75.2 74.8"),
        (DILATIONS, "69.7 73.1 73.6 73.2 75.3"),
    ],
    "Cityscapes-SemanticSegmentation/deeplab": [
        (LAYERS, "70.4 73.5 74.4 75.2 75.1"),
        (DILATIONS, "70.4 71.9 72.7 72.4 75.2"),
    ],
}
# Table 5: AP, AP50, AP of small, medium and large objects.
COCO = {
    "class_aware_rpn_R_101": "23.2 42.6 6.9 27.1 35.1",
    "class_aware_rpn_R_101_dconv3": "25.8 45.9 7.2 28.3 40.7",
    "faster_rcnn_R_101": "29.4 48.0 9.0 30.5 47.1",
    "faster_rcnn_R_101_dconv3_dpool": "33.1 50.3 11.6 34.9 51.2",
    "rfcn_R_101": "30.8 52.6 11.8 33.9 44.8",
    "rfcn_R_101_dconv3_dpool": "34.5 55.0 14.0 37.7 50.3",
    "faster_rcnn_AIR": "30.8 49.6 9.6 32.5 49.0",
    "faster_rcnn_AIR_dconv3_dpool": "34.1 51.1 12.2 36.5 52.4",
    "rfcn_AIR": "32.9 54.5 12.5 36.3 48.3",
    "rfcn_AIR_dconv3_dpool": "36.1 56.7 14.8 39.8 52.2",
    "rfcn_AIR_M": "34.5 55.0 16.8 37.3 48.3",
    "rfcn_AIR_dconv3_dpool_M": "37.1 57.3 18.8 39.7 52.3",
    "rfcn_AIR_MB": "35.5 55.6 17.8 38.4 49.3",
    "rfcn_AIR_dconv3_dpool_MB": "37.5 58.0 19.4 40.1 52.5",
}
RELEASED = {
    "VOC-Detection/rfcn_R_101": "79.6 63.1",
    "VOC-Detection/rfcn_R_101_dconv3_dpool": "82.3 67.8",
    "COCO-Detection/faster_rcnn_R_101": "30.3 52.1 9.9 32.2 47.4",
    "COCO-Detection/faster_rcnn_R_101_dconv3_dpool": "35.0 55.0 14.3 37.7 52.0",
    "COCO-Detection/faster_rcnn_R_101_FPN_ohem": "37.8 60.8 22.0 41.5 49.8",
    "COCO-Detection/faster_rcnn_R_101_FPN_ohem_dcn": "41.2 63.5 24.3 44.9 54.4",
    "COCO-Detection/rfcn_R_101": "32.1 54.3 12.8 34.9 46.1",
    "COCO-Detection/rfcn_R_101_dconv3_dpool": "35.7 56.8 15.2 38.8 51.5",
    "VOC-SemanticSegmentation/deeplab_R_101": "70.7",
    "VOC-SemanticSegmentation/deeplab_R_101_dconv3": "75.9",
    "Cityscapes-SemanticSegmentation/deeplab_R_101": "70.3",
    "Cityscapes-SemanticSegmentation/deeplab_R_101_dconv3": "75.2",
}


def published_by_the_paper():
    """{file: its numbers}; a number that differs between two tables is listed twice."""
    numbers = {f"COCO-Detection/{name}": row.split() for name, row in COCO.items()}
    for network, tables in RESNET_101.items():
        for suffixes, *metrics in tables:
            columns = zip(*(metric.split() for metric in metrics), strict=True)
            for suffix, column in zip(suffixes, columns, strict=True):
                known = numbers.setdefault(f"{network}_R_101{suffix}", [])
                if known != [*column]:
                    known += column
    return numbers


def rows():
    """{file: its cells}."""
    row = r"^\| \[`\S+`\]\(configs/(\S+)\.yaml\) \|(.*)\|(.*)\|(.*)\|$"
    return {file: cells for file, *cells in re.findall(row, PAGE, re.MULTILINE)}


@pytest.mark.parametrize(
    "column, published",
    [
        (0, published_by_the_paper()),
        (1, {file: row.split() for file, row in RELEASED.items()}),
        (2, {}),  # none of them has been fully trained
    ],
    ids=["paper", "released code", "ours"],
)
def test_published_numbers(column, published):
    shown = {file: re.findall(r"\d+\.\d", cells[column]) for file, cells in rows().items()}
    assert {file: numbers for file, numbers in shown.items() if numbers} == published


def test_rows_are_those_of_networks_of_full_size():
    small = ("quick", "model_zoo")
    full_size = {relative(p) for p in MODELS if p.parent.name not in small}
    assert {f"{file}.yaml" for file in rows()} == full_size
