"""A job is killed and goes on, is refused where something changed, and tries again what failed for no fault of the picture."""

from __future__ import annotations

import io
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import build as small
from tests.tools.reports.dataset.conftest import LABELS, Run, rows_of

from camserve.tools.console import ToolError

Fault = Callable[[pytest.MonkeyPatch], None]

FAULTS = """
        import os, pathlib
        black, white = (x.amax((1, 2, 3)) == 0).any(), (x.amin((1, 2, 3)) == 1).any()
        fails, ends = pathlib.Path("FOLDER", "raise"), pathlib.Path("FOLDER", "exit")
        if black and fails.exists(): raise RuntimeError("asked to")
        if white and ends.exists(): ends.unlink(); os._exit(1)"""
"""Lines of a model that fails on black pictures while there is a file that says so, and once ends its process on a white one."""


def die(*_: object, **__: object) -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def while_explaining(patch: pytest.MonkeyPatch) -> None:
    """In the middle of the third chunk."""
    from camserve.tools.reports.dataset.explaining import Explaining

    asked: list[object] = []
    original = Explaining._send

    def send(self: Any, requests: Any) -> Any:
        asked.append(requests)
        return die() if len(asked) == 6 else original(self, requests)

    patch.setattr(Explaining, "_send", send)


def between_data_and_commit(patch: pytest.MonkeyPatch) -> None:
    """When the second chunk from here is written, and has no name yet."""
    from camserve.tools.reports.dataset import storage

    written: list[object] = []
    original = storage.commit

    def commit(unfinished: Any, finished: Any) -> None:
        written.append(finished)
        return die() if sum("_chunks" in str(each) for each in written) == 2 else original(unfinished, finished)

    patch.setattr(storage, "commit", commit)


def while_joining(patch: pytest.MonkeyPatch) -> None:
    """When the second part is written, and has no name yet."""
    from camserve.tools.reports.dataset import storage

    original = storage.commit
    patch.setattr(storage, "commit", lambda one, other: die() if "part-00001" in str(other) else original(one, other))


def after_joining(patch: pytest.MonkeyPatch) -> None:
    """When all parts are there, and what they were made of too."""
    from camserve.tools.reports.dataset.results import Results

    patch.setattr(Results, "clear", die)


def run_and_die(fault: Fault, run: Callable[[], Any]) -> None:
    """Runs a job in a process of its own, which the fault kills."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads are idle
        child = os.fork()
    if not child:
        patch = pytest.MonkeyPatch()
        try:
            fault(patch)
            run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_job_that_is_killed_at_every_moment_loses_nothing_and_has_nothing_twice(
    run: Run, pictures: Path, explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a chunk is explained, between data and commit, while parts are joined, and before what they were made of is deleted."""
    from camserve.tools.reports.dataset import results

    monkeypatch.setattr(results, "JOINED", 4)
    for fault in (while_explaining, between_data_and_commit):
        run_and_die(fault, lambda: run(pictures, tmp_path))
        assert not list(tmp_path.glob("*.parquet"))[1:], "only the list is there"
    assert len(list((tmp_path / "_chunks").iterdir())) == 3
    run_and_die(while_joining, lambda: run(pictures, tmp_path))
    run_and_die(after_joining, lambda: run(pictures, tmp_path))
    assert sorted(path.name for path in tmp_path.glob("part-*")) == [f"part-{part:05}.parquet" for part in range(3)]

    outcome = run(pictures, tmp_path)

    assert (outcome.before, outcome.tally.explained) == (132, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".camserve.lock", "_inputs.parquet", "_manifest.json"),
        *(f"part-{part:05}.parquet" for part in range(3)),
    ]
    assert [(row["path"], row["status"], row["target"]) for row in rows_of(tmp_path)] == [
        (row["path"], row["status"], row["target"]) for row in rows_of(explained)
    ]


def test_another_jobs_folder_is_refused(run: Run, mar: Path, pictures: Path, explained: Path, tmp_path: Path) -> None:
    """What changed is named; a reference in the archive is no change."""
    before = {path: path.read_bytes() for path in explained.iterdir()}
    other = small.mar(tmp_path, "small", state=small.weights(seed=3), settings={"batchSize": 8}, labels=LABELS)
    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"archive": other}, r"the archive \(was .*; the weights \(was"),
        ({"options": {"top_k": 2}}, r"the options \(top_k was \"?not given\"?, is \"?2\"?\)"),
        ({"statistics": False}, "--no-statistics"),
        ({"chunk": 32}, "--chunk"),
        ({"most": 2**21}, "--max-request-size"),
        ({"given": more}, "the list of pictures"),
    ]
    for change, said in changes:
        given = change.pop("given", pictures)
        with pytest.raises(ToolError, match=rf"holds the rows of another job: .*{said}"):
            run(given, explained, **change)
    assert {path: path.read_bytes() for path in explained.iterdir()} == before


def test_two_runs_do_not_write_into_one_folder(run: Run, pictures: Path, explained: Path) -> None:
    """The second is told so."""
    from camserve.tools.reports.dataset.job import LOCK
    from camserve.tools.reports.journal import lock

    with lock(explained / LOCK, "--output"), pytest.raises(ToolError, match=r"another run writes into .* --output"):
        run(pictures, explained)


def test_errors_of_ours_are_tried_again_and_nothing_else_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends costs its batch nothing, for each is asked for again alone; what still fails is a row until the next run."""
    from camserve.tools.reports.dataset import results

    monkeypatch.setattr(results, "JOINED", 1)
    folder, output, faults = (tmp_path / name for name in ("pictures", "output", "faults"))
    folder.mkdir()
    faults.mkdir()
    lines = FAULTS.replace("FOLDER", str(faults)).strip()
    mar = small.mar(tmp_path / "store", "small", settings={"batchSize": 8}, labels=LABELS, fault=lines)
    for seed in range(36):
        pixels = {20: 0 * small.noise(80, 64), 5: 0 * small.noise(80, 64) + 255}.get(seed, small.noise(80, 64, seed))
        (folder / f"{seed:02}.png").write_bytes(small.encoded(pixels))
    (folder / "30.png").write_bytes(b"\x89PNG broken")
    (folder / "large.png").write_bytes(small.encoded(small.noise(300, 300)))
    (faults / "raise").touch()
    (faults / "exit").touch()

    outcome = run(folder, output, archive=mar, most=100_000)

    wrong = {"20.png": (500, "InternalError"), "30.png": (400, "UnsupportedFormat"), "large.png": (413, "RequestTooLarge")}
    assert {Path(row["path"]).name: (row["status"], row["error"]) for row in rows_of(output) if row["status"] != 200} == wrong
    assert (outcome.tally.explained, outcome.tally.failed) == (34, 3)
    assert not (faults / "exit").exists()
    kept = (output / "part-00000.parquet").read_bytes()
    (faults / "raise").unlink()

    outcome = run(folder, output, archive=mar, most=100_000)

    assert (outcome.before, outcome.tally.explained, outcome.tally.failed) == (36, 1, 0)
    rows = rows_of(output)
    assert [Path(row["path"]).name for row in rows if row["status"] != 200] == ["30.png", "large.png"]
    assert len({row["path"] for row in rows}) == len(rows) == 37
    assert (output / "part-00000.parquet").read_bytes() == kept
    assert run(folder, output, archive=mar, most=100_000).before == 37


def test_what_cannot_be_asked_is_refused_before_any_picture(run: Run, mar: Path, pictures: Path, tmp_path: Path) -> None:
    """A million rows with the same 400 help nobody; nor does a folder that must be emptied before another try."""
    from camserve.tools.reports.dataset.inputs import Columns

    refused: list[tuple[dict[str, Any], str]] = [
        ({"options": {"layer": "nosuch"}}, "the archive refuses what is asked: .*layer"),
        ({"archive": pictures}, "expected an archive's file|not an archive"),
        ({"trust": False}, "brings code of its own"),
        ({"columns": Columns(target="label")}, "--target-column: .* is no Parquet input"),
        ({"given": tmp_path / "nosuch"}, "there is no such file or folder"),
        ({"given": "nosuch://bucket/pictures"}, "expected a path, or a URI that pyarrow or fsspec opens"),
        ({"given": mar.parent}, "there is no picture and no Parquet file"),
    ]
    for change, said in refused:
        given = change.pop("given", pictures)
        with pytest.raises(ToolError, match=said):
            run(given, tmp_path / "output", **change)
        assert not (tmp_path / "output" / "_manifest.json").exists()


def test_an_archive_of_another_release_needs_trust(mar: Path, tmp_path: Path) -> None:
    """Its own copies of camserve run here, so they are this release's, or trusted."""
    from camserve.tools.archive.archive import open_archive
    from camserve.tools.archive.trust import find_code, read_weights

    with open_archive(mar) as opened:
        assert len(find_code(opened, read_weights(opened), runs_copies=True)) == 1  # the model's file
        (opened.directory / "camserve" / "core" / "text.py").write_text("import os")
        found = find_code(opened, read_weights(opened), runs_copies=True)
        assert "of another release than this: 1 files differ" in found[0]
        assert len(find_code(opened, read_weights(opened))) == 1


@pytest.mark.parametrize(("explain", "headers"), [({"checks": True}, {"x-explain-check": "false"}), ({}, {})])
def test_an_archive_that_checks_everything_checks_no_data_set(
    tmp_path: Path, explain: dict[str, Any], headers: dict[str, str]
) -> None:
    """Rows have no column for that, and each picture would take twenty-six more."""
    from camserve.tools.reports.dataset.explaining import leave_checks

    assert leave_checks(small.archive(tmp_path / "one", {**small.PLAIN, **explain})) == headers


def test_a_terminal_shows_how_far_a_job_is() -> None:
    """And after it the next step; without a terminal, a line now and then."""
    from rich.console import Console

    from camserve.tools.console import Progress
    from camserve.tools.reports.dataset.command import Shown

    for terminal in (True, False):
        file = io.StringIO()
        progress = Progress(Console(file=file, force_terminal=terminal, width=100, color_system=None))
        with Shown(progress) as shown:
            shown.tell(5, 10)
            shown._told -= 100
            shown.tell(6, 10)
            shown.tell(10, 10)
            with progress.step("Join"):
                pass
        assert ("10/10" in file.getvalue()) is terminal
        assert ("6 of 10 pictures" in file.getvalue()) is not terminal
