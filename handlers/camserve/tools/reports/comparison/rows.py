"""Compares the rows that `explain_dataset` wrote: those of the first archive, and of the second its rows, or its answers now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import Result, read_result
from camserve.tools.client.sources import AnswerSource
from camserve.tools.console import ToolError
from camserve.tools.reports.dataset.inputs import Entry, List
from camserve.tools.reports.dataset.reading import Reader
from camserve.tools.reports.dataset.results import Results
from camserve.tools.reports.dataset.rows import Row, answer_of
from camserve.tools.reports.dataset.storage import open_place
from camserve.tools.watching.rows import open_rows_of


@dataclass(frozen=True)
class RowPair:
    """A row of the first archive's, and how the second answers for its picture: `file` is the row's path."""

    file: str
    row: Row
    entry: Entry
    other: Row | None
    reader: Reader
    source: AnswerSource

    @property
    def annotated(self) -> bool:
        """Whether the picture has an annotated area, of which the second was or is asked."""
        other = self.other
        return self.entry.inside is not None and (other is None or other.get("inside") is not None or bool(other["warnings"]))

    def first(self) -> Result:
        """Returns the row's answer; raises CamserveError where it has none for the class that is predicted."""
        result = read_result(answer_of(self.row))
        if not result.explanations:
            raise CamserveError(None, "NoExplanation", "no label reaches the threshold; explain the data set with --top-k 1")
        if result.explanations[0].target != result.predictions[0].index:
            raise CamserveError(None, "OtherTarget", "its row explains another class than the predicted one")
        return result

    def second(self, target: int) -> Result:
        """Returns the second's answer; raises CamserveError where it has none for this class, or the picture is another now."""
        if self.other is None:
            picture = self.reader.read(self.entry)
            if isinstance(picture, CamserveError):
                raise picture
            if hashlib.sha256(picture).hexdigest() != self.row["sha256"]:
                raise CamserveError(None, "Changed", "the picture is another than it was when the data set was explained")
            area = self.entry.inside
            inside = {} if area is None else {"inside": json.loads(area) if area.startswith("[") else area}
            return read_result(self.source.ask(picture, {"target": target, **inside}))
        if self.other["sha256"] not in (None, self.row["sha256"]):
            raise CamserveError(None, "Changed", "the picture changed between the two data sets")
        result = read_result(answer_of(self.other))
        if not result.explanations or result.explanations[0].target != target:
            raise CamserveError(None, "OtherTarget", f"its row does not explain class {target}, which the first predicts")
        return result


class RowPairs:
    """The pairs of one or two folders.

    Args:
        archives: both archives' files.
        named: the first archive's folder, and perhaps the second's.
        second: the second archive, to be asked where it has no folder.

    Raises:
        ToolError: a folder is not of its archive, or was asked for otherwise, or the two are not of the same pictures.
    """

    def __init__(self, archives: tuple[Path, Path], named: list[str], second: AnswerSource) -> None:
        opened = [open_rows_of(archive, name) for archive, name in zip(archives, named, strict=False)]
        self._results = [results for results, _ in opened]
        manifest = opened[0][1]
        _check_options(named[0], manifest["options"], ("target", "method", "layer"))
        if len(opened) > 1:
            _check_options(named[1], opened[1][1]["options"], ("method", "layer"))
            if manifest["pictures"] != opened[1][1]["pictures"]:
                how = f"explain_dataset --input {named[0]} --target-column label"
                raise ToolError(f"{named[1]}: its pictures are not those of {named[0]}; make it with {how}")
        self.count = int(manifest["pictures"])
        self._second = second
        self._list = List(self._results[0].folder)
        self._reader = Reader(open_place(manifest["input"]).query)

    def __iter__(self) -> Iterator[RowPair]:
        others = _rows(self._results[1]) if len(self._results) > 1 else None
        for number, table in enumerate(self._results[0].batches()):
            for row, entry in zip(table.to_pylist(), self._list.chunk(number), strict=True):
                other = None if others is None else next(others)
                if other is not None and other["path"] != row["path"]:
                    raise ToolError(
                        f"the two data sets are not of the same pictures: {row['path']} stands beside {other['path']}"
                    )
                yield RowPair(row["path"], row, entry, other, self._reader, self._second)

    def read_pictures(self, files: Collection[str]) -> Mapping[str, bytes]:
        """Read the pictures of these rows; those that are gone are left out."""
        found = {}
        for number, table in enumerate(self._results[0].batches(["path"]) if files else ()):
            for place, path in enumerate(table["path"].to_pylist()):
                if path in files:
                    picture = self._reader.read(self._list.chunk(number)[place])
                    if isinstance(picture, bytes):
                        found[path] = picture
        return found


def _rows(results: Results) -> Iterator[Row]:
    for table in results.batches():
        yield from table.to_pylist()


def _check_options(named: str, options: Mapping[str, Any], refused: tuple[str, ...]) -> None:
    given = [name for name in refused if name in options]
    if given:
        raise ToolError(f"{named}: its job was asked for a {given[0]}; compared are archives as they answer by themselves")
