"""The names that other projects import: every public name exists, is sorted and has a docstring."""

import importlib

import pytest

PACKAGES = ["", ".analysis", ".data", ".engine", ".evaluation", ".layers", ".modeling", ".ops"]
PACKAGES += [".checkpoint", ".model_zoo", ".modeling.backbone", ".modeling.roi_heads"]
PACKAGES += [".integrations", ".integrations.torchvision"]


@pytest.mark.parametrize("name", [f"d2_deformable{package}" for package in PACKAGES])
def test_public_names_are_documented(name):
    package = importlib.import_module(name)
    assert package.__doc__
    names = getattr(package, "__all__", [])
    assert names == sorted(names)
    for public in (getattr(package, name) for name in names):
        if callable(public):
            # A docstring that a class inherits or a dataclass generates does not count.
            doc = vars(public).get("__doc__") if isinstance(public, type) else public.__doc__
            assert doc and not doc.startswith(f"{public.__name__}("), public


def test_modeling_exports_what_its_packages_do():
    modeling = importlib.import_module("d2_deformable.modeling")
    assert {*modeling.backbone.__all__, *modeling.roi_heads.__all__} <= set(modeling.__all__)
