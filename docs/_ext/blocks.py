"""Blocks of pages run when the documentation is built, and show what they print: nothing of a page is typed twice.

Every block of Python of a page runs, in order and in one namespace; every block of shell commands (``sh``) runs in a
folder of its page. Their output is put below them. A comment at the head of a block says what else there is:

``# figure: caption``       the last expression is a matplotlib Figure, or a list of such; ``# alt:`` describes it
``# raises: ValueError``    the block must raise this, which is shown
``# hidden``                the code is not shown, what it makes is
``# not run: why``          the block cannot run everywhere, and its page says so

The role ``{v}`` is an expression of the page's namespace: ``{v}`len(x)` `` becomes its value.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)

RUN: list[dict[str, Any]] = []
"""What ran: page, line, language, seconds, or why it did not."""

MARKS = ("figure", "alt", "raises", "hidden", "not run")


class value(nodes.Inline, nodes.TextElement):  # noqa: N801, docutils' way of names
    """An expression whose value stands in a sentence."""


class ValueRole(SphinxRole):
    """The role ``v``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Keep the expression until the blocks above it have run."""
        node = value(self.text, self.text)
        node.line = self.lineno
        return [node], []


def marks_of(code: str) -> tuple[dict[str, str], str]:
    """Return the marks at the head of a block, and the code below them."""
    found: dict[str, str] = {}
    lines = code.splitlines()
    while lines and lines[0].startswith("# "):
        name, _, text = lines[0][2:].partition(":")
        if name not in MARKS:
            break
        found[name] = text.strip()
        lines.pop(0)
        while found and name != "hidden" and lines and lines[0].startswith("#   "):  # goes on, four deep
            found[name] += " " + lines.pop(0)[1:].strip()
    return found, "\n".join(lines)


class RunBlocks(SphinxTransform):
    """Run the blocks of a page and put what they make below them."""

    default_priority = 20

    def apply(self, **kwargs: Any) -> None:
        """Walk through the page in order."""
        name = self.env.docname
        if name in self.config.blocks_run_elsewhere:
            return
        page = Page(name, Path(self.app.srcdir))
        found = [*self.document.findall(lambda node: isinstance(node, (nodes.literal_block, value)))]
        for node in found:
            if isinstance(node, value):
                page.value(node)
            elif node.get("language") in ("python", "sh"):
                page.block(node)
            elif node.get("language") not in ("text", "default", "none", None):
                page.wrong(node, f"a block of {node.get('language')!r} would not run: python, sh and text are known")


class Page:
    """The namespace and the folder of a page."""

    def __init__(self, name: str, docs: Path) -> None:
        self.name, self.docs = name, docs
        self.scope: dict[str, Any] = {"__name__": f"docs.{name}"}
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.figures = 0

    def wrong(self, node: nodes.Node, text: str) -> None:
        """Warn, which fails the build."""
        logger.warning("%s", text, location=node)

    def value(self, node: value) -> None:
        """Put the value of an expression where it stands."""
        try:
            text = str(eval(node.rawsource, self.scope))
        except Exception as error:
            self.wrong(node, f"{node.rawsource}: {type(error).__name__}: {error}")
            text = "?"
        node.replace_self(nodes.inline("", text, classes=["block-value"]))

    def block(self, node: nodes.literal_block) -> None:
        """Run a block and put what it makes below it."""
        marks, code = marks_of(node.astext())
        language = node["language"]
        record = {"page": self.name, "line": node.line, "language": language}
        shown = nodes.literal_block(code, code, language=language)
        below: list[nodes.Node] = []
        if "not run" in marks:
            RUN.append({**record, "not_run": marks["not run"]})
            below.append(nodes.paragraph("", f"Not run here: {marks['not run']}.", classes=["block-note"]))
        else:
            start = time.perf_counter()
            below = self.shell(node, code) if language == "sh" else self.python(node, marks, code)
            RUN.append({**record, "seconds": round(time.perf_counter() - start, 3)})
        node.parent.replace(node, [*([] if "hidden" in marks else [shown]), *below])

    def python(self, node: nodes.literal_block, marks: dict[str, str], code: str) -> list[nodes.Node]:
        """Run Python: what it prints, and the value of a last expression."""
        printed, result, raised = io.StringIO(), None, None
        here = os.getcwd()
        os.chdir(self.place())
        try:
            with contextlib.redirect_stdout(printed):
                tree = ast.parse(code)
                end = tree.body[-1] if tree.body else None
                last = end if isinstance(end, ast.Expr) else None
                if last is not None:
                    tree.body.pop()
                exec(compile(tree, f"<{self.name}>", "exec"), self.scope)
                if last is not None:
                    result = eval(compile(ast.Expression(last.value), f"<{self.name}>", "eval"), self.scope)
        except Exception as error:
            raised = error
        finally:
            os.chdir(here)
        if "raises" in marks:
            if type(raised).__name__ != marks["raises"]:
                self.wrong(node, f"raised {raised!r} and not {marks['raises']}")
            return [output(f"{printed.getvalue()}{type(raised).__name__}: {raised}")]
        if raised is not None:
            lines = traceback.format_exception(raised)
            self.wrong(node, f"a block failed: {''.join(lines[-4:])}")
            return []
        below: list[nodes.Node] = [output(printed.getvalue())] if printed.getvalue() else []
        figures = result if isinstance(result, list) else [result]
        if figures and all(hasattr(figure, "savefig") for figure in figures):
            if not marks.get("figure"):
                self.wrong(node, "a figure has no caption: # figure: caption")
            ends = [one is figures[-1] for one in figures]  # a row of figures has one caption, below the last
            return below + [self.figure(one, marks, captioned=at_end) for one, at_end in zip(figures, ends)]
        if "figure" in marks:
            self.wrong(node, f"the last expression is {type(result).__name__}, not a Figure")
        if result is not None:
            below.append(output(repr(result)))
        return below

    def shell(self, node: nodes.literal_block, code: str) -> list[nodes.Node]:
        """Run commands, as a user would type them."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        env = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
        command = ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=self.place(), env=env, capture_output=True, text=True, timeout=120)
        if done.returncode:
            self.wrong(node, f"exit status {done.returncode}: {done.stderr[-600:]}")
        text = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        return [output(text)] if text.strip() else []

    def place(self) -> str:
        """Return the folder in which the page's commands run."""
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="gpuconv-docs-")
            (Path(self.folder.name) / "examples").symlink_to(self.docs.parent / "examples")
        return self.folder.name

    def figure(self, drawn: Any, marks: dict[str, str], captioned: bool) -> nodes.figure:
        """Write a figure beside the pages, and return it, with its caption where it has one."""
        self.figures += 1
        file = self.docs / "_generated" / f"{self.name.replace('/', '-')}-{self.figures}.svg"
        file.parent.mkdir(exist_ok=True)
        drawn.savefig(file, facecolor="white", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
        alt = marks.get("alt") or marks.get("figure", "")
        image = nodes.image(uri=f"/_generated/{file.name}", alt=alt)
        caption = [nodes.caption("", "", *with_code(marks.get("figure", "")))] if captioned else []
        return nodes.figure("", image, *caption)


def with_code(text: str) -> list[nodes.Node]:
    """Return a caption as text with its `code` between backticks."""
    parts = text.split("`")
    return [nodes.literal(part, part) if place % 2 else nodes.Text(part) for place, part in enumerate(parts)]


def output(text: str) -> nodes.container:
    """Return what a block printed, apart from the code."""
    text = text.rstrip("\n")
    return nodes.container("", nodes.literal_block(text, text, language="text"), classes=["block-output"])


def written(app: Sphinx, error: Exception | None) -> None:
    """Write down what ran, for whoever asks whether all of it did."""
    if error is None:
        kept = {"blocks": RUN, "digest": hashlib.sha256(json.dumps(RUN).encode()).hexdigest()[:12]}
        (Path(app.outdir) / "blocks.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        ran = [block for block in RUN if "seconds" in block]
        logger.info(
            "%d blocks ran in %.1f s, %d not run", len(ran), sum(b["seconds"] for b in ran), len(RUN) - len(ran)
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx. Pages are read one after the other: their blocks may be slow, and share two processors."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "gpuconv", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "figure.facecolor": "white"})
    app.add_config_value("blocks_run_elsewhere", {}, "env")
    app.add_node(value)
    app.add_role("v", ValueRole())
    app.add_transform(RunBlocks)
    app.connect("build-finished", written)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
