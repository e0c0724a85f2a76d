"""What an archive's file of requirements (pip's format) names: TorchServe installs that before it loads the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .modules import modules_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement


@dataclass(frozen=True)
class Requirements:
    """What a file of requirements asks for: distributions, and `unnamed` lines that name none (a path, an address)."""

    named: tuple[Requirement, ...]
    unnamed: tuple[str, ...] = ()

    @property
    def modules(self) -> frozenset[str]:
        """Top-level modules of those that are installed, and of whatever they require."""
        return modules_of((each.name, extra) for each in self.named for extra in ("", *each.extras))

    @property
    def missing(self) -> list[str]:
        """Those that are not installed."""
        return [str(each) for each in self.named if _version(each.name) is None]

    @property
    def others(self) -> list[str]:
        """Those that are installed in another version, with that."""
        versions = [(each, _version(each.name)) for each in self.named]
        return [
            f"{each} ({version} is installed)"
            for each, version in versions
            if version is not None and not each.specifier.contains(version, prereleases=True)
        ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read_requirements(file: Path) -> Requirements:
    """Reads what a file names, and what the files that it refers to with `-r` name, where its markers hold here."""
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415 one of TorchServe's environment

    named: list[Requirement] = []
    unnamed: list[str] = []
    for line in _lines(file, set()):
        try:
            requirement = Requirement(_as_requirement(line))
        except InvalidRequirement:
            unnamed.append(line)
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            named.append(requirement)
    return Requirements(tuple(named), tuple(unnamed))


def _lines(file: Path, seen: set[Path]) -> Iterator[str]:
    """The lines that ask for something: comments, options, and what pip takes off a line are left out."""
    if file.resolve() in seen or not file.is_file():
        return
    seen.add(file.resolve())
    text = file.read_text("utf-8-sig", "replace").replace("\\\n", " ")
    for line in text.splitlines():
        wanted = re.sub(r"(^|\s)#.*", "", line).strip()
        other = re.match(r"(?:-r|--requirement)[\s=]*(.+)", wanted)
        if other:
            yield from _lines(file.parent / other[1].strip(), seen)
            continue
        editable = re.match(r"(?:-e|--editable)[\s=]*(.+)", wanted)
        if editable or (wanted and not wanted.startswith("-")):
            yield re.sub(r"\s--?[A-Za-z].*", "", editable[1] if editable else wanted).strip()


def _as_requirement(line: str) -> str:
    """A wheel's file and an address that ends in `#egg=NAME` as the names that they have."""
    wheel = re.fullmatch(r"(?:.*/)?([A-Za-z0-9][\w.]*)-[^-/]+(?:-\d[^-/]*)?-[^-/]+-[^-/]+-[^-/]+\.whl", line)
    egg = re.search(r"#(?:.*&)?egg=([\w.-]+)", line)
    if wheel or egg:
        return str((wheel or egg)[1])  # type: ignore[index]
    return line
