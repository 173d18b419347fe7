#!/usr/bin/env python
"""Record README's animation: the page of `d2-deformable app`, used in headless Chromium.

python tools/record_app.py docs/images/app.webp

It needs Chromium (apt install chromium). The page is the real one, and gets real events; only the
pointer is drawn, since screenshots have none.
"""

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from PIL import Image

from d2_deformable.app import Explorer, serve
from d2_deformable.inference import Predictor

PICTURE = Path(__file__).resolve().parents[1] / "docs/images/shapes.jpg"
WIDTH, HEIGHT = 880, 680  # of the page in pixels
MOVES, MOVE_TIME = 8, 45  # frames of a movement, and milliseconds of each
POINTER = """
const pointer = document.createElement("div");
pointer.id = "pointer";
pointer.style.cssText = "position: fixed; z-index: 9; pointer-events: none";
pointer.innerHTML = `<svg width="20" height="28" viewBox="0 0 20 28"><path stroke="#fff"
  stroke-width="1.5" d="M2 2v20l5-4.500 3.500 7.500 3.500-1.500-3.500-7.500h7z"/></svg>
  <span style="position: absolute; left: 18px; top: 20px; padding: 3px 9px; color: #fff;
  background: #1769b5; border-radius: 4px; font: 14px sans-serif">FILE</span>`;
document.body.append(pointer);
""".replace("FILE", PICTURE.name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="WEBP")
    file = parser.parse_args().output
    with page() as url, browser() as send:
        recorder = Recorder(send)
        use(recorder, url)
    first, *others = recorder.frames
    options = {"duration": recorder.durations, "loop": 0, "quality": 75, "method": 6}
    first.save(file, save_all=True, append_images=others, minimize_size=True, **options)
    seconds, size = sum(recorder.durations) / 1000, file.stat().st_size / 1000
    print(f"wrote {file}: {len(recorder.frames)} frames, {seconds:.0f} s, {size:.0f} kB")


def use(recorder, url):
    """Drop a picture, look at the parts of a box and the points of a unit, and without offsets."""
    recorder.open(url)
    recorder.hold(900)
    recorder.drop(PICTURE)
    recorder.hold(1500)
    recorder.click("#list button")  # the best detection
    recorder.hold(2500)
    recorder.click("#show-parts")
    recorder.hold(400)
    recorder.click("#canvas", 110 / 320, 262 / 320)  # on the crescent
    recorder.hold(500)
    recorder.point_at("#zero")  # away from the points
    recorder.hold(2000)
    recorder.click("#zero")
    recorder.hold(2500)
    recorder.click("#zero")
    recorder.hold(2500)


class Recorder:
    """Use the page as a person does, and keep what it shows: `frames`, and `durations` in ms."""

    def __init__(self, send):
        self.send = send
        self.frames, self.durations = [], []
        self.position = (40, HEIGHT - 40)

    def open(self, url):
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Page.navigate", url=url)
        self.wait_for("document.body?.dataset.ready")
        self.evaluate(POINTER)
        self.show_pointer()

    def drop(self, file):
        """Drag a file from the lower left corner of the page to the picture."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for number, (x, y) in enumerate(self.move(*self.place_of("#canvas"))):
            kind = "dragOver" if number else "dragEnter"
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
        self.hold(400)
        self.send("Input.dispatchDragEvent", type="drop", x=x, y=y, data=data)
        self.evaluate("document.querySelector('#pointer span').remove()")
        self.wait_for_answer()

    def click(self, selector, x=0.5, y=0.5):
        """Click on an element, at this share of its width and height."""
        x, y = self.point_at(selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            button = {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)
        self.wait_for_answer()

    def point_at(self, selector, x=0.5, y=0.5):
        """Move the pointer to an element; return its position."""
        place = self.place_of(selector, x, y)
        if place != self.position:
            *_, place = self.move(*place)
        return place

    def move(self, x, y):
        """Move the pointer; yield its position before each frame."""
        x0, y0 = self.position
        for number in range(1, MOVES + 1):
            part = number / MOVES
            part = part * part * (3 - 2 * part)  # slow at both ends
            self.position = (x0 + part * (x - x0), y0 + part * (y - y0))
            self.show_pointer()
            yield self.position
            self.hold(MOVE_TIME)

    def show_pointer(self):
        x, y = self.position
        self.evaluate(f"pointer.style.left = '{x}px'; pointer.style.top = '{y}px'")

    def hold(self, milliseconds):
        png = base64.b64decode(self.send("Page.captureScreenshot")["data"])
        self.frames.append(Image.open(io.BytesIO(png)).convert("RGB"))
        self.durations.append(milliseconds)

    def place_of(self, selector, x=0.5, y=0.5):
        box = self.evaluate(
            f"document.querySelector('{selector}').getBoundingClientRect().toJSON()"
        )
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def wait_for_answer(self):
        self.wait_for("document.querySelector('#message').textContent === ''")

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: not after {seconds} s")
            time.sleep(0.1)

    def evaluate(self, script):
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")


@contextmanager
def page():
    """Serve the page, with the packaged network; yield its address."""
    with serve(Explorer(Predictor(device="cpu")), port=0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browser():
    """Start Chromium; yield a function that calls a method of its DevTools protocol.

    Messages go through two pipes, as JSON that ends in a zero byte, so no other package is needed.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise SystemExit("chromium is not installed: apt install chromium")
    (their_input, to_browser), (from_browser, their_output) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{their_input} 4>&{their_output}'
        process = subprocess.Popen(
            ["bash", "-c", script, chromium, *options, "about:blank"],
            pass_fds=(their_input, their_output),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_input)
        os.close(their_output)
        with open(to_browser, "wb", 0) as requests, open(from_browser, "rb") as answers:
            try:
                yield connect(requests, answers)
            finally:
                process.terminate()
                process.wait()


def connect(requests, answers):
    """Attach to the first page; return send(method, **parameters) -> its result."""
    count, session = 0, {}

    def send(method, **parameters):
        nonlocal count
        count += 1
        message = {"id": count, "method": method, "params": parameters, **session}
        requests.write(json.dumps(message).encode() + b"\0")
        buffer = bytearray()
        while byte := answers.read(1):
            if byte != b"\0":
                buffer += byte
                continue
            answer = json.loads(buffer)
            buffer.clear()
            if answer.get("id") == count:  # the others are events
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise RuntimeError(f"{method}: Chromium has ended")

    targets = send("Target.getTargets")["targetInfos"]
    target = next(one["targetId"] for one in targets if one["type"] == "page")
    session["sessionId"] = send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    return send


if __name__ == "__main__":
    main()
