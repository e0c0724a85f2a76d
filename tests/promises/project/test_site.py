"""The documentation as pages and as a site: every link leads somewhere, lines are short, and nothing comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SKIPPED = ("node_modules", "build", "out", "dist")
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(ROOT).parts)
)
BUILDER = ROOT / ".venv-docs" / "bin" / "python"
LINK = re.compile(r"\]\(([^)\s]+)\)")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
"""What a browser loads by itself, by tag and attribute."""

SPOKEN = {"canonical", "prev", "next", "alternate", "edit"}
"""Links of a page's head that nothing is loaded from."""


def name(path: Path) -> str:
    """A page's place in the repository."""
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """A page's headings, as links name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """In the repository, to files and headings that there are; pages are read there too."""
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        place, _, heading = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page: Path) -> None:
    """At most 120 characters, in tables too: what is wider scrolls sideways, or is read by nobody."""
    assert [line for line in page.read_text("utf-8").split("\n") if len(line) > 120] == []


def test_the_readme_is_read_in_five_minutes() -> None:
    """At most 150 lines: everything else has a page."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the addresses of one element."""
        given = dict(attrs)
        if tag in FETCHED and not (tag == "link" and given.get("rel") in SPOKEN):
            self.addresses += [given.get(FETCHED[tag]) or ""]


@pytest.mark.skipif(not BUILDER.exists(), reason="needs .venv-docs: scripts/docs.sh --install")
def test_the_site_is_built_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Strictly: links, anchors and the navigation hold. Pages open from a folder, and load nothing from another host."""
    command = [str(BUILDER), "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]

    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert loaded.addresses
        assert [each for each in loaded.addresses if re.match(r"(https?:)?//", each)] == [], page.name
    api = (tmp_path / "reference" / "python.html").read_text("utf-8")
    assert all(f"{each}</" in api or f">{each}<" in api for each in ("from_archive", "explain", "predict", "save"))
