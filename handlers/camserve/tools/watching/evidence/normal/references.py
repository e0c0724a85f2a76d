"""References of kept predictions: beside them in the store, or in the archives that they are of."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from camserve.monitoring.evidence.names import name_reference
from camserve.monitoring.evidence.records import Record
from camserve.monitoring.evidence.stores import Store
from camserve.monitoring.reference import EXAMPLES, FILE, Reference, StaleReference
from camserve.tools.console import ToolError
from camserve.tools.watching.evidence.normal.examples import read_examples

LARGEST = 64 << 20
"""Bytes of a reference that are read."""


class References:
    """Finds references by their digest, each read once.

    Args:
        folder: the model's, in the store.
        archives: files that may hold it where the store does not.
    """

    def __init__(self, store: Store, archives: Sequence[Path]) -> None:
        self._store = store
        self._archives = archives
        self._found: dict[tuple[str, str], Reference] = {}
        self._examples: dict[str, list[Record]] = {}

    def find(self, folder: str, digest: str) -> Reference | None:
        """Returns a reference; None where neither store nor archives have it.

        Raises:
            ToolError: an archive cannot be read.
        """
        if (folder, digest) not in self._found:
            for text in self._texts(folder, digest):
                try:
                    reference = Reference.from_json(text)
                except StaleReference:
                    continue
                if reference.digest == digest:
                    self._found[folder, digest] = reference
                    break
        return self._found.get((folder, digest))

    def examples(self, digest: str) -> list[Record]:
        """Returns the examples of a reference, of the archives; each is read once."""
        if digest not in self._examples:
            texts = [read_member(archive, EXAMPLES) for archive in self._archives]
            self._examples[digest] = [each for text in texts if text for each in read_examples(text, digest)]
        return self._examples[digest]

    def _texts(self, folder: str, digest: str) -> list[str]:
        texts = []
        with suppress(FileNotFoundError):
            texts.append(self._store.read(f"{folder}/{name_reference(digest)}").decode("utf-8", "replace"))
        return texts + [read_member(archive, FILE) or "" for archive in self._archives]


def read_member(archive: Path, name: str) -> str | None:
    """Reads a file of an archive, or of a folder that one is unpacked in; None where it has none of that name.

    Raises:
        ToolError: there is no such archive, it is damaged, or the file is too large to be what it should be.
    """
    if archive.is_dir():
        path = archive / name
        return path.read_text("utf-8") if path.is_file() else None
    try:
        with zipfile.ZipFile(archive) as opened:
            about = opened.getinfo(name)
            if about.file_size > LARGEST:
                raise ToolError(f"{archive}: {name} takes {about.file_size} bytes, expected at most {LARGEST}")
            return opened.read(about).decode("utf-8", "replace")
    except KeyError:
        return None
    except (OSError, zipfile.BadZipFile) as error:
        raise ToolError(f"{archive} cannot be read as an archive (.mar): {error}") from error
