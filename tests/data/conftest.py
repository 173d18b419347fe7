import logging
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_deformable import add_deformable_config
from d2_deformable.data import custom, register_custom_datasets


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """$DETECTRON2_DATASETS, empty."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def register(root):
    """Register {name: {FORMAT: ...}} as a YAML would; remove the names afterwards."""
    names = set()

    def register(**sets):
        cfg = get_cfg()
        add_deformable_config(cfg)
        # Write a YAML file, so that values get the same types as users' values.
        file = root / "config.yaml"
        lines = [f"    {name}: {fields}" for name, fields in sets.items()]
        file.write_text("VERSION: 2\nDATASETS:\n  CUSTOM:\n" + "\n".join(lines) + "\n")
        cfg.merge_from_file(str(file))
        names.update(sets)
        register_custom_datasets(cfg)
        return cfg

    builtin = set(DatasetCatalog)
    yield register
    for name in names - builtin:
        custom._registered.pop(name, None)
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The package's warnings, whatever an earlier test did to its logger."""
    monkeypatch.setattr(logging.getLogger("d2_deformable"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def write_voc(root):
    """Write one image of a data set in VOC's layout and its XML; return the XML's path."""

    def write(stem, objects="", size=(60, 40), header=None, suffix=".jpg", folder="set"):
        images, annotations = root / folder / "JPEGImages", root / folder / "Annotations"
        for path in (images, annotations, root / folder / "ImageSets" / "Main"):
            path.mkdir(parents=True, exist_ok=True)
        if suffix:
            Image.new("RGB", size).save(images / f"{stem}{suffix}")
        if header is None:
            header = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        xml = annotations / f"{stem}.xml"
        xml.write_text(f"<annotation>{header}{objects}</annotation>")
        return xml

    return write


@pytest.fixture
def voc_object():
    def voc_object(label, box, extra=""):
        corners = "".join(
            f"<{tag}>{value}</{tag}>"
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        return f"<object><name>{label}</name>{extra}<bndbox>{corners}</bndbox></object>"

    return voc_object
