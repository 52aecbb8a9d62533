"""Pages as they were built: every block ran, every link leads somewhere, lessons have figures, speeds have sources."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LESSONS = [path for path in PAGES if path.parent.name == "lessons" and path.stem != "index"]
ELSEWHERE = {"write-a-solver", "tutorial/cupy", "model-gap"}
"""Pages whose blocks other lanes run: docs/conf.py names the tests."""

BLOCK = re.compile(r"^```(\S*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Links(HTMLParser):
    """The links of a page and the places that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            if name in ("href", "src") and value and not (tag == "link" and "canonical" in str(attrs)):
                self.links.append(value)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def test_every_block_ran(site):
    ran = json.loads((site / "blocks.json").read_text())["blocks"]
    assert len(ran) > 80
    for path in PAGES:
        if name_of(path) in ELSEWHERE:
            continue
        blocks = [kind for kind, _ in BLOCK.findall(path.read_text(encoding="utf-8"))]
        assert {kind for kind in blocks if not kind.startswith("{")} <= {"python", "sh", "text"}, path
        of_page = [block for block in ran if block["page"] == name_of(path)]
        assert len(of_page) == sum(kind in ("python", "sh") for kind in blocks), path


def test_what_does_not_run_says_why(site):
    ran = json.loads((site / "blocks.json").read_text())["blocks"]
    silent = [block for block in ran if "seconds" not in block and len(block.get("not_run", "")) < 10]
    assert silent == []


def test_links_lead_somewhere(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 60
    broken = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            places = pages[target].places if target in pages else None
            lost = places is not None and parts.fragment and unquote(parts.fragment) not in places
            if lost or not target.is_file():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site):
    """Styles, scripts and pictures are in the folder: the pages work without a network."""
    outside = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        outside += re.findall(r'(?:src|<link[^>]*rel="stylesheet"[^>]*href)="(https?:[^"]*)"', text)
    assert outside == []


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_has_a_figure_and_ends_with_its_kernel(path, site):
    text = (site / f"{name_of(path)}.html").read_text(encoding="utf-8")
    assert "<figure" in text
    end = path.read_text(encoding="utf-8").rpartition("\n## ")[2]
    assert end.startswith(("The kernel", "Why a depthwise"))
    assert "gpuconv.explain(" in end
    assert "estimate" in text


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_numbers_of_a_lesson_are_computed(path):
    """A sentence with a large number, or a result after an equals sign, has it from the page's namespace."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"\{v\}`[^`]*`+[^`\n]*?`?", "", re.sub(r"\{v\}``.*?``", "", text))
    words = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|arXiv:\S+|\d+x\d+(?:x\d+)?|\b(?:19|20)\d\d\b", "", text)
    assert re.findall(r"\d{1,3}(?:,\d{3})+|\d{4,}|= ?\d+", words) == []


SPEED = re.compile(r"\d(?:\.\d+)?\s?(?:ms|us|µs|TFLOP/s|GB/s|TB/s|times faster|x faster)\b")
SOURCE = re.compile(r"model|measured|data sheet|datasheet|published|claim|not run|README|quoted", re.IGNORECASE)


@pytest.mark.parametrize("path", [*PAGES, REPO / "README.md"], ids=lambda path: path.stem)
def test_a_speed_has_a_source(path):
    """Where a paragraph or a table names a speed, it says where that is from: measured, modelled, or whose claim."""
    without = []
    section, text = "", BLOCK.sub("", path.read_text(encoding="utf-8"))
    if "Every figure here is modelled" in text:
        return
    for part in text.split("\n\n"):
        section = part if part.startswith("#") else f"{section}\n\n{part}"
        if SPEED.search(part) and not SOURCE.search(section):
            without.append(part[:200])
    assert without == []


def test_no_page_refers_to_what_others_cannot_see():
    for path in [*PAGES, *(REPO / "examples").glob("*.py"), REPO / ".github" / "CONTRIBUTING.md"]:
        assert "shared/" not in path.read_text(encoding="utf-8"), path
