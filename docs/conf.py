"""How the documentation is built: ``make docs``, or ``python scripts/lanes.py docs``. Offline; warnings are errors."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS / "_ext"), str(DOCS.parent)]
os.environ.setdefault("PYTHONPATH", str(DOCS.parent))  # for what blocks of shell commands start

from gpuconv.config import VERSION, logger  # noqa: E402

logger.setLevel("WARNING")  # Sphinx shows what is logged

project = "gpuconv"
author = "The gpuconv authors"
release = version = VERSION
html_title = f"gpuconv {VERSION}"
html_theme = "furo"
html_show_copyright = html_show_sphinx = False
html_copy_source = html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "light_css_variables": {"font-stack--monospace": "ui-monospace, 'DejaVu Sans Mono', Consolas, monospace"},
}

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "blocks",
    "names",
    "repository",
    "public",
    "solvers",
]
exclude_patterns = ["_build", "_ext", "_generated", "drawing"]
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # else each name of an entry that several share gets the words that are of all of them
napoleon_preprocess_types = False
# Functions, methods and modules that a docstring names must exist; types of parameters are words there.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:exc", ".*"), ("py:obj", ".*"), ("py:data", ".*")]
nitpick_ignore_regex += [("py:mod", r"gpuconv\.summary.*"), ("py:meth", r"gpuconv\.summary\..*")]
suppress_warnings = ["myst.strikethrough"]

blocks_run_elsewhere = {
    "write-a-solver": "tests/interpret/test_solver_guide.py",
    "tutorial/cupy": "tests/cuda_on_cpu/test_cupy_page.py",
    "model-gap": "it has none",
}
