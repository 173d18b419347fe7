"""Serve the page and the answers of an `Explorer`, by Python's own HTTP server."""

import io
import json
import logging
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from ..data.warped_shapes import WarpedShapesFormat
from ..utils.html import content_policy
from .explorer import Explorer

PAGE = Path(__file__).with_name("page.html")
LARGEST = 64 * 2**20  # bytes of an uploaded image
LOOPBACK = ("127.0.0.1", "localhost")

logger = logging.getLogger(__name__)


def serve(explorer: Explorer, host: str = "127.0.0.1", port: int = 7861) -> ThreadingHTTPServer:
    """Make a server; its `serve_forever` answers requests.

    Args:
        host: other addresses than the loopback let everyone on the network use it.
        port: 0 takes a free one.

    Raises:
        OSError: the port is in use.
    """

    class Handler(_Handler):
        pass

    Handler.explorer = explorer
    Handler.policy = content_policy(
        PAGE.read_text(), "connect-src 'self'", "frame-ancestors 'none'"
    )
    Handler.any_host = host not in LOOPBACK
    return ThreadingHTTPServer((host, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    explorer: Explorer
    any_host: bool
    policy: str
    timeout = 60  # seconds without a byte, after which a connection is closed

    def do_GET(self):
        path, query = self._request()
        if path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/example":
            self._answer(lambda: self.explorer.open(io.BytesIO(example())))
        elif path in ("/found", "/unit", "/parts"):
            self._answer(lambda: self._ask(path, query))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self):
        path, _ = self._request()
        text = self.headers.get("Content-Length", "")
        length = int(text) if text.isdecimal() else 0
        if path != "/open" or not self._of_this_page():
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not 0 < length <= LARGEST:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            content = io.BytesIO(self.rfile.read(length))
            self._answer(lambda: self.explorer.open(content))

    def _ask(self, path, query):
        name, offsets = query["id"], query.get("offsets", "learned")
        if path == "/found":
            return self.explorer.found(name, offsets)
        if path == "/parts":
            return self.explorer.part_boxes(name, offsets, int(query["index"]))
        x, y = float(query["x"]), float(query["y"])
        return self.explorer.unit(name, offsets, x, y, int(query["layers"]))

    def _request(self):
        url = urlsplit(self.path)
        # A page of another site can point its own name at the loopback; its requests name it.
        host = urlsplit("//" + self.headers.get("Host", "")).hostname
        if not self.any_host and host not in LOOPBACK:
            return "", {}
        return url.path, {key: values[0] for key, values in parse_qs(url.query).items()}

    def _of_this_page(self) -> bool:
        """Whether a POST comes from this page; browsers name the site that sends it."""
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _answer(self, ask):
        try:
            answer, status = ask(), HTTPStatus.OK
        except KeyError as error:
            answer, status = {"error": f"{error} is missing"}, HTTPStatus.BAD_REQUEST
        except (OSError, ValueError) as error:
            answer, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
        except RuntimeError as error:  # such as too little memory
            answer, status = {"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR
        self._send(json.dumps(answer).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status=HTTPStatus.OK):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self):
        self.send_header("Content-Security-Policy", self.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, message, *args):
        logger.debug(message, *args)


@cache
def example() -> bytes:
    """A drawn picture, which the packaged network has not seen, as PNG."""
    pixels, _ = WarpedShapesFormat(image_size=320).draw(5004)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
