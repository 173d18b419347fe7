"""The page of d2-deformable app: its answers, and the page itself in headless Chromium."""

import json
import re
import urllib.error
import urllib.request
from threading import Thread

import numpy as np
import pytest

from browser import needs_chromium, page_after_scripts
from d2_deformable.app import Explorer, serve
from d2_deformable.app.server import PAGE, example
from d2_deformable.inference import Predictor


@pytest.fixture(scope="module")
def url():
    with serve(Explorer(Predictor(device="cpu")), port=0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(url, path, **options):
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", **options)) as answer:
        return json.load(answer)


def refused(url, path, **options):
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(url, path, **options)
    return error.value.code, error.value.read().decode()


def test_units_and_parts_move_with_the_offsets(url):
    image = ask(url, "open", data=example(), method="POST")
    assert (image["width"], image["height"]) == (320, 320)
    assert image["layers"] == 3 and image["parts"]
    name = image["id"]
    found = ask(url, f"found?id={name}")["detections"]
    assert found[0]["name"] == "star" and found[0]["score"] > 0.9

    unit = ask(url, f"unit?id={name}&x=150&y=120&layers=2")
    assert 9 < len(unit["grid"]) <= 81  # two layers of 3 x 3, without points outside the map
    assert unit["points"] != unit["grid"] and abs(unit["unit"][0] - 150) < 16
    parts = ask(url, f"parts?id={name}&index=0")
    assert np.shape(parts["parts"]) == np.shape(parts["bins"]) == (49, 4)
    assert parts["parts"] != parts["bins"]

    unit = ask(url, f"unit?id={name}&x=150&y=120&layers=2&offsets=zero")
    assert unit["points"] == unit["grid"]
    parts = ask(url, f"parts?id={name}&index=0&offsets=zero")
    assert parts["parts"] == parts["bins"]
    assert ask(url, f"found?id={name}&offsets=zero")["detections"] != found
    assert ask(url, f"found?id={name}")["detections"] == found  # the offsets are back


def test_wrong_requests_are_answered(url):
    name = ask(url, "example")["id"]
    assert refused(url, "open", data=b"no image", method="POST") == (
        400,
        '{"error": "this image cannot be read: not an image, or of an unknown format"}',
    )
    assert refused(url, "found?id=old") == (
        400,
        '{"error": "this image is no longer open: open it again"}',
    )
    assert "there is no detection 999" in refused(url, f"parts?id={name}&index=999")[1]
    assert "'x' is missing" in refused(url, f"unit?id={name}")[1]
    assert "expected 'learned' or 'zero'" in refused(url, f"found?id={name}&offsets=no")[1]
    unit = f"unit?id={name}&x=9&y="
    assert "expected finite numbers" in refused(url, f"{unit}nan&layers=2")[1]
    for layers in ("0", "-1", "99", "9" * 5000):
        assert refused(url, f"{unit}9&layers={layers}")[0] == 400, "9**99 points"
    assert refused(url, "etc/passwd")[0] == 404
    assert refused(url, "example", headers={"Host": "evil.example"})[0] == 404


@pytest.mark.parametrize("path", ["", "none<script>"])
def test_the_policy_allows_the_page_and_nothing_else(url, path):
    try:
        answer = urllib.request.urlopen(f"{url}/{path}")
    except urllib.error.HTTPError as error:
        answer = error
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    text = answer.read().decode()
    assert "none<script>" not in text
    assert path or not re.search(r"<[^>]* (style|on\w+)\s*=", text), "the policy forbids these"


def test_the_page_asks_no_other_machine():
    text = PAGE.read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)|https?://|@import", text)


@needs_chromium
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(url, width):
    page = page_after_scripts(f"{url}/?x=150&y=120", width)
    assert 'data-ready="1"' in page
    assert re.search(r'aria-pressed="true">star \d+ %', page)
    overflow = re.search(r'data-overflow="(-?\d+)"', page)
    assert int(overflow[1]) <= 0
    assert re.search(r'id="message" role="status"></div>', page)
