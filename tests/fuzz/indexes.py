"""Indexes of a model zoo: entries that stay in the folder of the index, or one sentence."""

import json

from d2_deformable.model_zoo.index import parse_index

from ._files import FOLDER, refused_in_a_sentence

FILE = FOLDER / "zoo/index.json"
FILE.parent.mkdir()
(FILE.parent / "a.yaml").touch()


def one_input(data: bytes) -> None:
    FILE.write_bytes(data)
    with refused_in_a_sentence(FILE):
        for entry in parse_index(FILE).values():
            for path in (entry.location, entry.config_file or ""):
                assert "://" in path or not path or path.startswith(f"{FILE.parent}/"), path
                assert ".." not in path.split("/"), path
            assert entry.ap is None or abs(entry.ap) <= 100


_ENTRY = {"config": "a.yaml", "sha256": "0" * 64, "AP": 1.5}

SEEDS = [
    json.dumps({"acme/a.pth": {**_ENTRY, **fields}}).encode()
    for fields in (
        {},
        {"url": "b.pth"},
        {"url": "https://models.example/b.pth"},
        {"url": "../b.pth"},
        {"url": "/b.pth"},
        {"url": "x://../../b.pth"},
        {"config": "../a.yaml"},
        {"config": "x" * 300 + ".yaml"},
        {"AP": 10**400},
    )
]
