"""MkDocs' hook: pages and figures that lie elsewhere in the repository, at their places in the site, with their links.

Links in Markdown are those that hold in the repository. Here each gets the place that its target has in the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "DESIGN.md": "understand/design.md",
    "SECURITY.md": "operate/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
    "RELEASING.md": "project/releasing.md",
    "benchmarks/README.md": "understand/benchmarks.md",
    "examples/README.md": "project/examples.md",
}
"""By their places in the repository, those in the site."""
FIGURES = {path.relative_to(ROOT).as_posix(): f"pictures/{path.name}" for path in sorted((ROOT / "benchmarks/plots").iterdir())}
SITE = PAGES | FIGURES
REPOSITORY = {place: source for source, place in SITE.items()}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them."""
    for source, place in SITE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns the repository's links into the site's; what is not in the site is left, and fails the strict build."""
    here = page.file.src_uri
    source = REPOSITORY.get(here, f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        parts = urlsplit(link[2])
        if parts.scheme or not parts.path:
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
        place = SITE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if not place:
            return link[0]
        found = os.path.relpath(place, posixpath.dirname(here) or ".")
        return link[1] + found + (f"#{parts.fragment}" if parts.fragment else "") + link[3]

    return LINK.sub(turned, markdown.replace("<details>", '<details markdown="1">'))  # so that tables in it are tables
