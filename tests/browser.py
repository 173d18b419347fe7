"""Open pages in headless Chromium."""

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="chromium is not installed (apt install chromium)"
)

# Shows each page in a frame of each width, and then lists what is wrong with it.
CHECK = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const faults = [];
async function check(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width;
  frame.height = 900;
  frame.src = encodeURI(page);
  await new Promise(loaded => { frame.onload = loaded; document.body.append(frame); });
  const inner = frame.contentDocument;
  const fault = text => faults.push(`${page} at ${width} px: ${text}`);
  for (const image of inner.images) {
    image.loading = "eager";
    await image.decode().catch(() => fault(`the image ${image.src.slice(0, 80)} does not load`));
  }
  await inner.fonts.ready;
  for (const { name } of frame.contentWindow.performance.getEntriesByType("resource"))
    if (!/^(data|blob):/.test(name) && new URL(name).origin != location.origin)
      fault(`it requests ${name}`);
  const { scrollWidth, clientWidth } = inner.documentElement;
  if (scrollWidth > clientWidth) fault(`it overflows by ${scrollWidth - clientWidth} px`);
  frame.remove();
}
(async () => {
  for (const width of WIDTHS) await Promise.all(PAGES.map(page => check(page, width)));
  fetch("faults", { method: "POST", body: JSON.stringify(faults) });
})();
</script>"""


@contextmanager
def chromium(url: str, *options: str):
    """Open a page; yield the process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options]
        # No other machine is asked, not even where a page wants to.
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        command += [f"--user-data-dir={profile}", url]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def page_after_scripts(url: str, width: int) -> str:
    """The page's HTML once its scripts have run, in a window of this width."""
    options = f"--window-size={width},900", "--virtual-time-budget=30000", "--dump-dom"
    with chromium(url, *options) as process:
        return process.communicate(timeout=300)[0]


def faults_of(folder: Path, pages, widths=(400, 1400)) -> list[str]:
    """Find faults of pages in a folder: requests that leave it, images that do not load, and
    content wider than the window.

    Args:
        pages: paths relative to the folder.
    """
    check = CHECK.replace("WIDTHS", str(list(widths))).replace("PAGES", json.dumps(list(pages)))
    faults = Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/check":
                self.answer(check)
            else:
                super().do_GET()

        def do_POST(self):
            faults.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer("")

        def answer(self, text):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with chromium(f"http://127.0.0.1:{server.server_port}/check"):
                return faults.get(timeout=300)
        finally:
            server.shutdown()
            thread.join()
