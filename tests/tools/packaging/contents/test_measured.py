"""Layer and method chosen by measuring on pictures: what the archive holds and says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.build import encoded, noise
from tests.support.models.tiny import package_model, write_model
from tests.support.processes.fork_server import ForkServer

from camserve.pipeline.metadata import MEASURED, read_choice
from camserve.tools.archive.archive import handler_of, load_service, open_archive
from camserve.tools.reports.inspection.page import PAGE


def test_an_archive_is_packaged_by_what_was_measured(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best layer and method are its defaults, the report travels with it, and the metadata show it without the others' rows."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(4):
        (pictures / f"{seed}.png").write_bytes(encoded(noise(64, 64, seed)))
    fork_server.replace_fresh(monkeypatch)

    archive, text = package_model([*write_model(tmp_path), "--choose-by", str(pictures)])

    assert "Layer and method by measurement on 4 pictures" in text
    with open_archive(archive) as opened:
        report = json.loads((opened.directory / MEASURED).read_text())
        assert (opened.directory / PAGE).read_text().startswith("<!doctype html>")
        explain = opened.config["explain"]
        assert (explain["layers"][0], explain["method"]) == (report["best"]["layer"], report["best"]["method"])
        assert len({row["method"] for row in report["rows"]}) == 6
        described = handler_of(load_service(opened.directory)).describe_handle()
    choice = described["choice"]
    assert (choice["layer"], choice["method"], choice["pictures"]) == (described["layer"], described["method"], 4)
    assert choice["figures"]["gain"]["low"] <= choice["figures"]["gain"]["mean"] <= choice["figures"]["gain"]["high"]
    assert (choice["compared"], "rows" in choice) == (len(report["rows"]), False)


def test_a_file_that_is_no_report_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be anything of that name; the worker starts, and its log says so."""
    assert read_choice(None) is None
    assert read_choice(tmp_path) is None
    for text in ("no JSON", "[]", '{"best": {"layer": "a", "method": "b"}, "rows": []}'):
        (tmp_path / MEASURED).write_text(text)
        assert read_choice(tmp_path) is None
    assert "is no report of what was measured" in caplog.text
