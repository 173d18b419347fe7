"""Settings of the documentation site; `make docs` builds it into build/docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_ext")]

from d2_deformable import __version__  # noqa: E402

project = "d2_deformable"
author = "the authors of d2_deformable"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "pages",
    "docstrings",
]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # _ext/pages.py reads notebooks
exclude_patterns = ["_ext"]
smartquotes = False

html_theme = "furo"
html_title = "d2_deformable"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = False
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "literal"  # docstrings write `name` for code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
maximum_signature_line_length = 80
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
