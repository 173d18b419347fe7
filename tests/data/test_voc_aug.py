"""d2-deformable data prepare-voc-aug on synthetic files in the layouts that people download."""

import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from d2_deformable.cli import data_prepare_voc_aug
from d2_deformable.cli.main import main
from d2_deformable.data import voc_aug
from d2_deformable.data.masks import MaskFormat, read_mask
from d2_deformable.data.voc_aug import prepare_voc_aug

TRAIN, VAL = ["t1", "t2"], ["v1", "v2"]
SBD_TRAIN, SBD_VAL = ["t1", "s1", "v1"], ["s2", "v2"]  # overlap both of VOC's splits
NAME = ("data", "prepare-voc-aug")
RESULT = ["s1", "s2", "t1", "t2"]


def labels(stem, border=False):
    values = np.full((4, 6), ord(stem[0]) % 20 + int(stem[1]), np.uint8)
    if border:
        values[0] = 255
    return values


def write_lists(folder, **lists):
    folder.mkdir(parents=True, exist_ok=True)
    for name, stems in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(stems) + "\n")


@pytest.fixture
def voc(root):
    folder = root / "VOC2012"
    write_lists(folder / "ImageSets/Segmentation", train=TRAIN, val=VAL)
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir()
    for stem in {*RESULT, *VAL}:
        Image.new("RGB", (6, 4)).save(folder / f"JPEGImages/{stem}.jpg")
    for stem in TRAIN + VAL:
        mask = Image.fromarray(labels(stem, border=True))
        mask.putpalette(list(range(255, 255 - 3 * 80, -1)))
        mask.save(folder / f"SegmentationClass/{stem}.png")
    return folder


@pytest.fixture
def sbd(root, monkeypatch):
    """SBD's layout. Its .mat files are NumPy files here, and loadmat reads them with NumPy."""
    folder = root / "benchmark_RELEASE/dataset"
    write_lists(folder, train=SBD_TRAIN, val=SBD_VAL)
    (folder / "cls").mkdir()
    for stem in {*SBD_TRAIN, *SBD_VAL}:
        with open(folder / f"cls/{stem}.mat", "wb") as file:
            np.save(file, labels(stem))

    def loadmat(file, squeeze_me, struct_as_record):
        assert squeeze_me and not struct_as_record
        return {"GTcls": types.SimpleNamespace(Segmentation=np.load(file))}

    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", types.SimpleNamespace(loadmat=loadmat))
    return folder


@pytest.fixture
def pngs(root):
    folder = root / "shared"
    folder.mkdir()
    for stem in {*RESULT, *VAL}:
        Image.fromarray(labels(stem, border=True)).save(folder / f"{stem}.png")
    return folder


def check(voc, bordered):
    assert (voc / voc_aug.SPLIT).read_text().split() == RESULT
    masks = voc / "SegmentationClassAug"
    assert sorted(path.name for path in masks.iterdir()) == [f"{stem}.png" for stem in RESULT]
    for stem in RESULT:
        expected = labels(stem, border=stem in bordered)
        assert np.array_equal(read_mask(masks / f"{stem}.png"), expected), stem
    form = MaskFormat(
        voc, "JPEGImages", masks.name, voc_aug.SPLIT, tuple(f"class {i}" for i in range(21))
    )
    assert [record["image_id"] for record in form.load("voc_aug")] == RESULT


def test_from_sbd(voc, sbd):
    """VOC's own masks, which have borders, take precedence over SBD's."""
    assert prepare_voc_aug(voc, sbd, expected=4) == 4
    check(voc, bordered=TRAIN)


def test_from_pngs(voc, pngs):
    assert prepare_voc_aug(voc, masks=pngs, expected=4) == 4
    check(voc, bordered=RESULT)


def test_pngs_that_are_in_place(voc, pngs):
    pngs.rename(voc / "SegmentationClassAug")
    assert prepare_voc_aug(voc, masks=voc / "SegmentationClassAug", expected=4) == 0
    assert (voc / voc_aug.SPLIT).read_text().split() == RESULT


def test_an_interrupted_run_continues(voc, sbd, monkeypatch):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        prepare_voc_aug(voc, sbd, expected=4)
    masks = voc / "SegmentationClassAug"
    assert len(list(masks.glob("*.png"))) == 2
    assert not (voc / voc_aug.SPLIT).exists(), "the list comes last"
    assert prepare_voc_aug(voc, sbd, expected=4) == 2
    check(voc, bordered=TRAIN)


def test_one_report_of_all_that_is_missing(voc, sbd):
    for name in ("JPEGImages/s1.jpg", "JPEGImages/s2.jpg", "SegmentationClass/t2.png"):
        (voc / name).unlink()
    (sbd / "cls/s2.mat").unlink()
    with pytest.raises(FileNotFoundError) as error:
        prepare_voc_aug(voc, sbd, expected=4)
    assert str(error.value).splitlines() == [
        "some files are missing:",
        f"{voc}/JPEGImages: 2 missing, e.g. s1.jpg, s2.jpg",
        f"{sbd}/cls: 1 missing, e.g. s2.mat",
        f"{voc}/SegmentationClass: 1 missing, e.g. t2.png",
    ]
    assert not (voc / "SegmentationClassAug").exists()


def test_command(voc, sbd, pngs, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="4 images instead of 10582: 2 of VOC's train and 5 of"):
        main([*NAME, "--sbd", str(sbd)])
    with pytest.raises(SystemExit, match="shared2, without 2 of VOC's val. Is one of them"):
        main([*NAME, "--masks", f"{pngs}2"])
    with pytest.raises(SystemExit, match="nowhere/ImageSets/Segmentation: 2 missing"):
        main([*NAME, "--masks", str(pngs), "--voc", "nowhere"])
    monkeypatch.setattr(
        data_prepare_voc_aug, "prepare_voc_aug", lambda *a: prepare_voc_aug(*a, expected=4)
    )
    main([*NAME, "--sbd", str(sbd)])
    assert "wrote 4 masks into" in capsys.readouterr().out
    check(voc, bordered=TRAIN)


def test_wrong_masks_are_named(voc, pngs):
    Image.fromarray(np.full((4, 6), 21, np.uint8)).save(pngs / "s1.png")
    with pytest.raises(ValueError, match="s1.png: holds 21, no class of VOC"):
        prepare_voc_aug(voc, masks=pngs, expected=4)
    Image.new("RGB", (6, 4)).save(pngs / "s1.png")
    with pytest.raises(ValueError, match="s1.png: .*this one is RGB"):
        prepare_voc_aug(voc, masks=pngs, expected=4)


def test_scipy_is_asked_for(voc, sbd, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(SystemExit, match="pip install scipy, or give the masks as PNGs"):
        main([*NAME, "--sbd", str(sbd)])


def test_mat_files_as_matlab_writes_them(tmp_path):
    scipy = pytest.importorskip("scipy.io", reason="scipy reads SBD's .mat files")
    content = {"Segmentation": labels("s1"), "CategoriesPresent": np.uint8([1])}
    scipy.savemat(tmp_path / "a.mat", {"GTcls": content})
    assert np.array_equal(voc_aug._sbd_reader()(tmp_path / "a.mat"), labels("s1"))
