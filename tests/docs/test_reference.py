"""What the pages must name: every public name, every environment variable, every solver, every reason."""

from __future__ import annotations

import importlib
import inspect
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import GenericAlias
from typing import Any

import pytest
from reasons import reasons

import gpuconv
from gpuconv.dispatch.selection import backends

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
ROOMS = ("gpuconv", "gpuconv.nn", "gpuconv.shapes", "gpuconv.solvers", "gpuconv.tuning")


def public_names() -> list[tuple[str, str]]:
    return [(room, name) for room in ROOMS for name in importlib.import_module(room).__all__]


def inventory(site: Path) -> dict[str, str]:
    """Return the page of each Python object that the pages document."""
    data = (site / "objects.inv").read_bytes()
    for _ in range(4):  # lines in plain text
        data = data[data.index(b"\n") + 1 :]
    found = {}
    for line in zlib.decompress(data).decode().splitlines():
        name, kind, _, place, _ = line.split(" ", 4)
        if kind.startswith("py:"):
            found[name] = place.partition("#")[0]
    return found


def test_every_public_name_is_in_the_reference(site):
    pages = inventory(site)
    missing = [f"{room}.{name}" for room, name in public_names() if f"{room}.{name}" not in pages]
    assert missing == []


def test_the_reference_has_no_name_that_is_gone(site):
    names = {f"{room}.{name}" for room, name in public_names()} | {f"gpuconv.{name}" for name in gpuconv._LATE}
    pages = inventory(site)
    gone = [name for name in pages if name.rpartition(".")[0] in ROOMS and name not in names and name not in ROOMS]
    assert gone == []


def test_every_public_name_has_shapes_and_errors(site):
    """In its docstring, or in the section of its page that says it for all of a family."""
    pages = inventory(site)
    silent = []
    for room, name in public_names():
        page = (DOCS / pages[f"{room}.{name}"]).with_suffix(".md").read_text(encoding="utf-8")
        section = page.partition("## Shapes and errors")[2].partition("```{public}")[0]
        if not re.search(r"shape|size|array|\(N, C", section, re.IGNORECASE) or "Error" not in section:
            silent.append(f"{room}.{name}")
    assert silent == []


def entries_of(docstring: str, section: str) -> list[str]:
    """Return the entries of a numpydoc section, without what stands below them."""
    lines = inspect.cleandoc(docstring).splitlines()
    heads = [place for place, line in enumerate(lines) if line and set(line) <= {"-"}]
    for head, following in pairwise([*heads, len(lines) + 1]):
        if lines[head - 1] == section:
            return [line for line in lines[head + 1 : following - 1] if line and not line.startswith(" ")]
    return []


def documented() -> Iterator[tuple[str, Any]]:
    for room, name in public_names():
        thing = getattr(importlib.import_module(room), name)
        if callable(thing) and not isinstance(thing, GenericAlias):
            yield f"{room}.{name}", thing
            if isinstance(thing, type):
                for own, method in vars(thing).items():
                    if not own.startswith("_") and inspect.isfunction(method):
                        yield f"{room}.{name}.{own}", method


def test_what_stands_under_parameters_are_parameters():
    """An entry names some of the signature; else the words of one before it have run into it."""
    wrong, entries = [], 0
    for name, thing in documented():
        found = entries_of(thing.__doc__ or "", "Parameters")
        known = set(inspect.signature(thing).parameters) if found else set()
        for entry in found:
            names = {one.strip().lstrip("*") for one in entry.partition(" : ")[0].split(",")}
            if not names <= known:
                wrong.append((name, entry))
        entries += len(found)
    assert entries > 100
    assert wrong == []


def test_no_words_are_taken_for_a_type(site):
    """Of a value: what stands in front of a colon."""
    long, types = [], 0
    for path in (site / "api").glob("*.html"):
        for field in re.findall(r"<dt[^>]*>Type<.*?<dd[^>]*>(.*?)</dd>", path.read_text(), re.DOTALL):
            types += 1
            words = re.sub(r"<[^>]*>", "", field).split()
            long += [(path.stem, " ".join(words))] if len(words) > 6 else []
    assert types
    assert long == []


def test_no_data_is_described_as_its_type(site):
    """A tuple's own words are not those of ``tuple``."""
    page = (site / "api" / "shapes.html").read_text()
    assert "Built-in" not in page and "What ask_padding knows by name" in re.sub(r"<[^>]+>", "", page)


def test_every_public_name_has_an_example():
    """Their examples run in tests/unit/test_doctests.py. Exceptions, and data without a docstring, need none."""
    without = []
    for room, name in public_names():
        thing = getattr(importlib.import_module(room), name)
        if isinstance(thing, GenericAlias) or (isinstance(thing, type) and issubclass(thing, BaseException)):
            continue
        if callable(thing) and ">>> " not in (thing.__doc__ or ""):
            without.append(f"{room}.{name}")
    assert without == [], f"no example in {without}"


def test_every_variable_is_on_its_page():
    read = set(re.findall(r"GPUCONV_[A-Z_]+", (REPO / "gpuconv" / "config.py").read_text(encoding="utf-8")))
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(GPUCONV_[A-Z_]+)`", page, re.MULTILINE))
    assert len(read) > 5
    assert rows == read


def test_every_variable_that_the_package_reads_is_in_config():
    elsewhere = {}
    for path in (REPO / "gpuconv").rglob("*.py"):
        if path.name != "config.py":
            for name in re.findall(r"environ[^\n]*?(GPUCONV_[A-Z_]+)", path.read_text(encoding="utf-8")):
                elsewhere[name] = path
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    assert [name for name in elsewhere if name not in page] == []


def test_every_reason_is_on_its_page():
    found = reasons()
    assert len(found) > 100
    page = " ".join((DOCS / "slow.md").read_text(encoding="utf-8").split())
    missing = {text: file for text, file in found.items() if f"`{text}`" not in page}
    assert missing == {}


def test_no_reason_of_the_page_is_gone():
    found = {*reasons(), "needs … B of workspace, the limit is … B", "backend … was forced", "solver … was forced"}
    page = (DOCS / "slow.md").read_text(encoding="utf-8")
    listed = page.partition("## Every reason")[2].partition("\n### ")[2]
    named = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", listed)]
    sentences = [text for text in named if "…" in text or len(text.split()) > 3]
    assert [text for text in sentences if text not in found and not text.startswith("pip")] == []


def test_every_solver_has_a_page():
    pages = " ".join(path.read_text(encoding="utf-8") for path in (DOCS / "kernels").glob("*.md"))
    named = {word for line in re.findall(r"^```\{solver\} (.*)$", pages, re.MULTILINE) for word in line.split()}
    ours = {solver.id for backend in backends().values() for solver in backend.solvers()}
    assert named == ours


def test_every_kernel_page_has_its_parts(site):
    for path in (DOCS / "kernels").glob("*.md"):
        if path.stem != "index":
            text = (site / "kernels" / f"{path.stem}.html").read_text(encoding="utf-8")
            assert all(part in text for part in ("Sources:", "Compiled", "Modelled", "Measured on a GPU")), path.stem
            assert "<figure" in text, f"{path.stem} has no picture"
            if "{solver} numpy." not in path.read_text(encoding="utf-8"):
                assert "No kernel is compiled" not in text, path.stem


@pytest.mark.parametrize("name", ["write-a-solver", "model-gap"])
def test_pages_that_others_read_stay_where_they_are(name, site):
    assert (DOCS / f"{name}.md").is_file()
    assert f'href="{name}.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_the_version_is_the_library_s(site):
    assert f"gpuconv {gpuconv.__version__}" in (site / "index.html").read_text(encoding="utf-8")
