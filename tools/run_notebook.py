#!/usr/bin/env python
"""Run the cells of a notebook in this process, and store their outputs in it.

python tools/run_notebook.py docs/tutorial.ipynb

Only stdout and the value of each cell's last line are stored, pictures as JPEG, which is small. The
working folder is that of the notebook, as in Jupyter. nbclient is not used: with a kernel it would
add about 30 packages to constraints.txt.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="file to write (default: the notebook itself)")
    args = parser.parse_args()
    notebook = json.loads(args.notebook.read_text(encoding="utf-8"))
    output = (args.output or args.notebook).absolute()
    os.chdir(args.notebook.parent)
    run(notebook)
    output.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: dict) -> None:
    """Run the code cells in order, in one namespace, and replace their outputs.

    Raises:
        SystemExit: a cell failed; its traceback is printed.
    """
    namespace = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        name, source = f"<cell {number}>", "".join(cell["source"])
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                value = run_cell(source, name, namespace)
        except Exception:
            traceback.print_exc()
            sys.exit(f"cell {number} failed:\n{source}")
        cell["execution_count"] = number
        cell["outputs"] = outputs(printed.getvalue(), value, number)


def run_cell(source: str, name: str, namespace: dict):
    """Run a cell; return the value of its last line if that is an expression, else None."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    return last and eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def outputs(printed: str, value, number: int) -> list[dict]:
    """Convert what a cell printed, and its value, to outputs of nbformat 4."""
    found = []
    if printed:
        text = printed.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        if hasattr(value, "_repr_jpeg_"):  # of Pillow
            data = {"image/jpeg": base64.b64encode(value._repr_jpeg_()).decode()}
        else:
            data = {"text/plain": [repr(value)]}
        result = {"data": data, "execution_count": number, "metadata": {}}
        found.append({**result, "output_type": "execute_result"})
    return found


if __name__ == "__main__":
    main()
