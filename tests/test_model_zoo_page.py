"""MODEL_ZOO.md names every network of configs/ once, with a link that leads there."""

import re
from pathlib import Path

from yamls import CONFIGS, MODELS, relative

PAGE = (Path(__file__).parents[1] / "MODEL_ZOO.md").read_text()


def test_every_network_is_listed_once():
    links = re.findall(r"\[`(\S+)`\]\(configs/(\S+)\)", PAGE)
    assert all(Path(file).stem == name for name, file in links)
    assert sorted(file for _, file in links) == sorted(map(relative, MODELS))
    assert all((CONFIGS / file).is_file() for _, file in links)
