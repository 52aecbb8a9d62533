"""Links from pages to files of the repository lead to pages with their text, so that kernels can be read in place."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".c": "c", ".json": "json", ".md": "markdown"}
WANTED: set[str] = set()
NAVIGATION: dict[tuple[Any, ...], str] = {}


def page_of(path: str) -> str:
    """Return the name of the page that shows a file or folder of the repository."""
    WANTED.add(path)
    return f"source/{path}"


class ToRepository(SphinxTransform):
    """Turn links such as ``../gpuconv/problem.py`` into links to pages of this documentation."""

    default_priority = 15

    def apply(self, **kwargs: Any) -> None:
        """Walk through the links of a page."""
        for node in [
            *self.document.findall(lambda node: isinstance(node, (addnodes.download_reference, addnodes.pending_xref)))
        ]:
            target = node.get("reftarget", "")
            if isinstance(node, addnodes.pending_xref) and node.get("reftype") != "myst":
                continue
            path, _, _ = str(target).partition("#")
            if not path:
                continue
            if node.get("refdomain") == "doc":  # MyST writes pages without their ending, others than ours from the root
                path = f"/{os.path.relpath(path, DOCS)}.md" if Path(path).is_relative_to(REPO) else f"{path}.md"
            base = DOCS if path.startswith("/") else (DOCS / self.env.docname).parent
            found = Path(os.path.normpath(base / path.lstrip("/")))
            if not found.is_relative_to(REPO) or (found.is_relative_to(DOCS) and found.suffix in ("", ".md")):
                continue
            if not found.exists():
                logger.warning("no such file in the repository: %s", found.relative_to(REPO), location=node)
                continue
            name = page_of(str(found.relative_to(REPO)))
            uri = self.app.builder.get_relative_uri(self.env.docname, name)
            link = nodes.reference("", "", *node.children, refuri=uri, internal=True)
            node.replace_self(link)


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that a page of the documentation names, and for folders a list of their files."""
    seen: set[str] = set()
    while WANTED - seen:
        for path in sorted(WANTED - seen):
            seen.add(path)
            file = REPO / path
            if file.is_dir():
                body = "".join(_item(app, path, inside) for inside in sorted(file.iterdir()) if _shown(inside))
                body = f"<ul>{body}</ul>"
            else:
                text = file.read_text(encoding="utf-8")
                body = app.builder.highlighter.highlight_block(text, LANGUAGES.get(file.suffix, "text"))  # type: ignore[attr-defined]
            title = html.escape(path)
            yield (
                f"source/{path}",
                {"title": title, "body": f'<div class="source-page"><h1>{title}</h1>{body}</div>'},
                "page.html",
            )


def same_navigation(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Let pages of files, none of which is in the navigation, share it: all that differs is the way up to its links."""
    if pagename.startswith("source/"):
        written, depth = context["toctree"], pagename.count("/")

        def toctree(**options: Any) -> str:
            key = (depth, *sorted(options.items()))
            if key not in NAVIGATION:
                NAVIGATION[key] = written(**options)
            return NAVIGATION[key]

        context["toctree"] = toctree


def _shown(path: Path) -> bool:
    return path.suffix in LANGUAGES and not path.name.startswith("__pycache__")


def _item(app: Sphinx, folder: str, file: Path) -> str:
    inside = f"{folder}/{file.name}"
    WANTED.add(inside)
    uri = app.builder.get_relative_uri(f"source/{folder}", f"source/{inside}")
    return f'<li><a href="{uri}">{html.escape(file.name)}</a></li>'


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_transform(ToRepository)
    app.connect("html-collect-pages", pages)
    app.connect("html-page-context", same_navigation, priority=400)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
