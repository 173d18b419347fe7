"""Serve an interactive viewer of detections, sampling points and box parts."""

import webbrowser

from ..app import Explorer, serve
from ..inference import Predictor
from . import command

EXAMPLE = """
examples:
  d2-deformable app
  d2-deformable app --model output --port 8000 --no-browser
"""


def parser():
    parser = command.parser("app", __doc__, EXAMPLE)
    command.add_predictor_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7861, help="(7861)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def main(args):
    predictor = Predictor(args.model, args.weights, device=args.device, overrides=args.opts)
    with serve(Explorer(predictor), args.host, args.port) as server:
        url = f"http://{args.host}:{server.server_port}/"
        print(f"{url} shows the page; Ctrl-C ends it", flush=True)
        if not args.no_browser:
            webbrowser.open(url)
        server.serve_forever()
