"""The API reference: a directive that documents what ``__all__`` of a module names, under a public name."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from types import GenericAlias
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

KINDS = {"function": "autofunction", "class": "autoclass", "exception": "autoexception", "data": "autodata"}


def kind_of(thing: Any) -> str:
    """Return what a public thing is: exception, class, function or data."""
    if isinstance(thing, type):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if callable(thing) and not isinstance(thing, GenericAlias) else "data"


class Public(SphinxDirective):
    """``{public} module``: everything in its ``__all__``; `:as:` where it is public, `:names:` some of it alone."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"as": directives.unchanged, "names": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Hand each name to autodoc."""
        module = import_module(self.arguments[0])
        public = self.options.get("as", self.arguments[0])
        names = self.options.get("names", "").split() or module.__all__
        lines = ["```{eval-rst}", *([] if "as" in self.options else [f".. py:module:: {public}", ""])]
        for name in names:
            kind = kind_of(getattr(module, name))
            lines += [f".. {KINDS[kind]}:: {public}.{name}", *([] if kind != "class" else ["   :members:"]), ""]
        holder = nodes.container()
        self.state.nested_parse(StringList([*lines, "```"], self.get_source_info()[0]), 0, holder)
        return holder.children


def plain_footnotes(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Write footnotes of docstrings as numbers in brackets: one page has many docstrings, each with a first note."""
    found: list[str] = []
    for line in lines:
        plain = re.sub(r"\[(\d+)\]_", r"[\1]", line)
        note = re.sub(r"^(\s*)\.\. \[(\d+)\]", r"\1[\2]", plain)
        found += ["", note] if note != plain else [plain]  # a paragraph of its own
    lines[:] = found


def words_of_data(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Take the words below an assignment from the module that has it, where a name is public elsewhere.

    Else autodoc takes those of the type: a tuple would be documented as what ``tuple`` does.
    """
    package, _, own = name.rpartition(".")
    if what != "data":
        return
    for module in [module for module in sys.modules if module.startswith(f"{package}.")]:
        if getattr(sys.modules[module], own, None) is thing:
            words = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", own))
            if words:
                lines[:] = words
                return


VALUES = ("attribute", "data", "property")
WORDS: dict[str, list[str]] = {}
"""What is said of a value, by its name, until napoleon is done with it."""


def keep_words(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep the words on a value: napoleon takes what stands in front of a colon for its type."""
    if what in VALUES and not any(line.strip("- ") == "" and "-" in line for line in lines):
        WORDS[name] = [*lines]


def restore_words(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Put back what was kept."""
    if what in VALUES and name in WORDS:
        lines[:] = WORDS.pop(name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("public", Public)
    app.connect("autodoc-process-docstring", words_of_data, priority=90)
    app.connect("autodoc-process-docstring", plain_footnotes, priority=100)
    app.connect("autodoc-process-docstring", keep_words, priority=400)
    app.connect("autodoc-process-docstring", restore_words, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
