"""A Sphinx extension: what pages take from other files of the repository, as Markdown.

A line of a page such as `<!-- include README.md -->` is replaced by the text it names:

    include FILE        a Markdown file outside docs/, up to its line <!-- end of include -->
    config keys         every setting of d2_deformable/config.py
    commands            the help of every command of d2-deformable

A notebook becomes its text, its code and the outputs that are stored in it. Links to files that are
no pages of the site become plain text.
"""

import ast
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARKER = re.compile(r"^<!-- (include (\S+)|config keys|commands) -->$", re.MULTILINE)
SUFFIXES = (".md", ".ipynb")  # of pages
END = "<!-- end of include -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)


def expand(text: str, page: Path) -> tuple[str, list[Path]]:
    """Replace the markers of a page, and rewrite its links.

    Returns:
        the text, and the files it was made of.
    """
    used = []

    def replace(match):
        if match[1] == "config keys":
            used.append(ROOT / "d2_deformable/config.py")
            return config_keys(used[-1].read_text(encoding="utf-8"))
        if match[1] == "commands":
            return commands()
        used.append(ROOT / match[2])
        included = used[-1].read_text(encoding="utf-8").partition(END)[0]
        return rewrite_links(included, used[-1].parent, page.parent)

    text = rewrite_links(text, page.parent, page.parent)
    return MARKER.sub(replace, text), used


def notebook_text(content: str, page: Path) -> str:
    """Write a notebook with its stored outputs as Markdown.

    Args:
        content: of a .ipynb file whose pictures are JPEGs, as tools/run_notebook.py stores them.
    """
    parts = []
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(rewrite_links(source, page.parent, page.parent))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                text = "".join(output["text"]).rstrip()
                parts.append(f"```{{code-block}} text\n:class: output\n\n{text}\n```")
            else:
                parts.append(f"![output](data:image/jpeg;base64,{output['data']['image/jpeg']})")
    return "\n\n".join(parts)


def included_files() -> dict[Path, Path]:
    """{file: the page of the site that includes it}."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        for match in MARKER.finditer(page.read_text(encoding="utf-8")):
            if match[2]:
                pages[ROOT / match[2]] = page
    return pages


def rewrite_links(text: str, old: Path, new: Path) -> str:
    """Make relative links of a file in folder `old` work in a page in folder `new`.

    A link to a file that is not on the site is replaced by its text.
    """
    pages = included_files()

    def replace(match):
        image, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        file = (old / path).resolve()
        file = pages.get(file, file)
        if not file.is_relative_to(DOCS) or not (image or file.suffix in SUFFIXES):
            return label
        return f"{image}[{label}]({os.path.relpath(file, new)}{hash_}{anchor})"

    # Code blocks stay as they are.
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(replace, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replace, text[end:])])


def config_keys(source: str) -> str:
    """Describe the keys that `add_deformable_config` sets, by its comments, in the order it has.

    Args:
        source: text of d2_deformable/config.py.
    """
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "add_deformable_config"
    )
    lines = source.splitlines()
    names, sections = {"cfg": ""}, {}
    end = function.body[0].end_lineno
    for node in function.body[1:]:
        comments = comment_blocks(lines[end : node.lineno - 1])
        end = node.end_lineno
        if not isinstance(node, ast.Assign):
            continue
        *_, attribute = node.targets
        target = attribute if isinstance(attribute, ast.Attribute) else node.value
        path = full_name(target, names)
        if isinstance(node.targets[0], ast.Name):  # a short name for a group of keys
            names[node.targets[0].id] = path
            for comment in comments:  # its first word may name another group
                group = re.match(r"([A-Z_]+)\.[A-Z_]+ ", comment)
                sections.setdefault(f"MODEL.{group[1]}" if group else path, []).append(comment)
            continue
        *notes, meaning = comments
        section, _, key = path.rpartition(".")
        default = "{}" if isinstance(node.value, ast.Call) else ast.unparse(node.value)
        entries = sections.setdefault(section, [])
        entries += [*notes, f"`{key}`: `{default}`\n: {meaning}"]
    return "\n\n".join(
        "\n\n".join([f"## {section}", *entries]) for section, entries in sections.items() if entries
    )


def comment_blocks(lines: list[str]) -> list[str]:
    """The comments of these lines; an empty line ends a comment."""
    blocks = "\n".join(line.strip() for line in lines).split("\n\n")
    texts = [" ".join(re.findall(r"^# ?(.*)$", block, re.MULTILINE)) for block in blocks]
    return [text for text in texts if text]


def full_name(node, names: dict[str, str]) -> str:
    """The key of cfg that an expression like `resnets.DEFORM_LAYERS` means; "" if it is none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if not isinstance(node, ast.Attribute):
        return ""
    return f"{full_name(node.value, names)}.{node.attr}".lstrip(".")


def commands() -> str:
    """The help of each command, as a section."""
    from importlib import import_module

    from d2_deformable.cli.main import COMMANDS

    os.environ["COLUMNS"] = "90"
    sections = []
    for name, (module, _) in COMMANDS.items():
        parser = import_module(f"d2_deformable.cli.{module}").parser()
        sections.append(f"## {name}\n\n```text\n{parser.format_help().strip()}\n```")
    return "\n\n".join(sections)


def on_source_read(app, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    if page.suffix == ".ipynb":
        content[0] = notebook_text(content[0], page)
        return
    content[0], used = expand(content[0], page)
    for file in used:
        app.env.note_dependency(str(file), docname=name)


def setup(app) -> dict:
    app.connect("source-read", on_source_read)
    return {"parallel_read_safe": True}
