"""The reference: even bins, groups of classes, and an archive that is rewritten without harm."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import build as small
from tests.worker import monitored

from camserve.mapstats import STATISTICS
from camserve.reference import BINS, FILE, UNSEEN, Made, Reference, StaleReference, load
from camserve.tools import archive as archives
from camserve.tools import reference
from camserve.tools.baseline import attention_of, build, edges_of, group_classes
from camserve.tools.console import Progress, ToolError
from camserve.tools.fresh.worker import Row, ask


def binned(values: list[float]) -> list[int]:
    """How many of the values each of their own bins holds."""
    edges = np.array(edges_of(np.array(values, dtype=np.float64)))
    counts: list[int] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=BINS).tolist()
    return counts


def test_bins_hold_a_tenth_of_the_pictures_each() -> None:
    """Where values are many, and in whatever order they come."""
    assert binned([(7 * each) % 100 for each in range(100)]) == [10] * BINS
    assert binned(np.random.default_rng(0).normal(size=1000).tolist()) == [100] * BINS


def test_edges_lie_between_values_that_occur() -> None:
    """So that rounding on another machine moves no value into another bin."""
    values = np.repeat(np.arange(20) / 49, 5)
    edges = edges_of(values)

    assert not set(edges) & set(values.tolist())
    assert all(np.isclose(edge * 49 % 1, 0.5) for edge in edges)


def test_bins_are_as_even_as_repeated_values_allow() -> None:
    """Half of the pictures have one and the same value: its bin holds them all, the others share the rest."""
    counts = binned([0.5] * 50 + [0.5 + each / 100 for each in range(1, 51)])

    assert max(counts) == 50
    assert sum(counts) == 100
    assert sorted(counts)[-2] <= 11


def test_few_values_get_a_bin_each_and_so_does_what_lies_beyond() -> None:
    """A camera's pictures have one width: both a larger and a smaller one must be seen."""
    edges = np.array(edges_of(np.array([640.0] * 30)))
    bins = np.searchsorted(edges, [320, 640, 800], side="right")

    assert len(set(bins.tolist())) == 3
    assert binned([1.0, 2.0, 2.0, 3.0]) == [0, 1, 2, 1, *[0] * 6]


def test_a_statistic_that_no_picture_has_gets_edges_all_the_same() -> None:
    """A model of one class has no runner-up to overlap with."""
    assert edges_of(np.empty(0)) == (0.0,) * (BINS - 1)


def test_groups_of_classes_are_even_and_keep_classes_whole() -> None:
    """Common classes get a group of their own; a group has some fifty pictures."""
    targets = [7] * 100 + [3] * 90 + [1] * 30 + [2] * 30 + [5] * 30
    groups = group_classes(targets)

    assert groups[7] != groups[3]
    assert sorted(sum(groups[each] == group for each in targets) for group in set(groups.values())) == [30, 30, 30, 90, 100]
    assert set(group_classes([1, 2, 3] * 10).values()) == {0}
    assert max(group_classes(list(range(1000))).values()) == UNSEEN - 1


def test_attention_of_a_class_with_few_pictures_or_maps_of_several_sizes_is_left_out() -> None:
    """A mean of nineteen maps is mostly chance; maps of different sizes have none."""
    square, wide = np.full((2, 2), 0.25), np.full((1, 4), 0.25)
    shares: list[Any] = [square] * 19 + [square] * 20 + [square] * 19 + [wide]

    assert set(attention_of([1] * 19 + [2] * 20 + [3] * 20, shares)) == {2}


@pytest.fixture
def found() -> Reference:
    """A reference of 120 made-up pictures of two classes."""
    from camserve.looks import Measured

    random = np.random.default_rng(0)
    values = {name: random.random(120) for name in STATISTICS}
    values["overlap"][:20] = np.nan
    targets = [4] * 70 + [9] * 50
    shares: list[Any] = [np.array([[0.25, 0.75]])] * 30 + [np.array([[0.75, 0.25]])] * 40 + [None] * 50
    return build(Measured(values, targets, [""] * 120), shares, Made("features", "gradcam++", "sha256:1"))


def test_counts_are_by_group_and_leave_out_what_was_not_measured(found: Reference) -> None:
    """Their sums are the numbers of pictures."""
    assert found.images == 120
    assert found.group_images[:2].tolist() == [70, 50]
    assert found.counts["overlap"].sum() == 100
    assert found.counts["entropy"].sum(0).tolist() == [12] * BINS


def test_attention_is_the_mean_of_a_classs_maps_where_there_are_enough(found: Reference) -> None:
    """Class 9 has no map that says something."""
    assert set(found.attention) == {4}
    assert found.attention[4].grid == pytest.approx(np.array([[(30 * 0.25 + 40 * 0.75) / 70, (30 * 0.75 + 40 * 0.25) / 70]]))


def test_a_reference_is_read_as_it_was_written(found: Reference, tmp_path: Path) -> None:
    """Edges to the last bit: they decide into which bin a picture falls."""
    (tmp_path / FILE).write_text(found.to_json())
    again = load(tmp_path, found.made)

    assert again is not None
    assert (again.edges, again.groups, again.images, again.made) == (found.edges, found.groups, found.images, found.made)
    assert all(np.array_equal(again.counts[name], found.counts[name]) for name in STATISTICS)
    assert np.allclose(again.attention[4].grid, found.attention[4].grid, atol=1e-5)
    assert load(tmp_path / "nowhere", found.made) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"format":1', '"format":2'),
        lambda text: json.dumps({**json.loads(text), "edges": {}}),
        lambda text: json.dumps({**json.loads(text), "groups": {"4": 9}}),
        lambda text: json.dumps(
            {**json.loads(text), "edges": {**json.loads(text)["edges"], "area": [2, 1, 3, 4, 5, 6, 7, 8, 9]}}
        ),
        lambda text: json.dumps({**json.loads(text), "counts": {**json.loads(text)["counts"], "area": [[1]]}}),
    ],
)
def test_a_damaged_reference_is_told_and_not_used(found: Reference, tmp_path: Path, damage: Any) -> None:
    """Wrong bins would be worse than none."""
    (tmp_path / FILE).write_text(damage(found.to_json()))

    with pytest.raises(StaleReference, match="cannot be read"):
        load(tmp_path, found.made)


@pytest.mark.parametrize(("name", "now"), [("layer", "layer4"), ("method", "gradcam"), ("weights", "sha256:2")])
def test_a_reference_of_another_model_is_told_and_not_used(found: Reference, tmp_path: Path, name: str, now: str) -> None:
    """Maps of another layer, method or model are not comparable."""
    (tmp_path / FILE).write_text(found.to_json())

    with pytest.raises(StaleReference, match=f"made with the {name} .*, the archive now has {now}"):
        load(tmp_path, Made(**{**vars(found.made), name: now}))


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the tests' small model, with a stored and a compressed member."""
    folder = small.archive(tmp_path_factory.mktemp("small") / "small")
    path = folder.parent / "small.mar"
    with zipfile.ZipFile(path, "w") as target:
        target.comment = b"kept"
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                kind = zipfile.ZIP_STORED if each.suffix == ".pth" else zipfile.ZIP_DEFLATED
                target.write(each, each.relative_to(folder), kind)
    path.chmod(0o640)
    return path


def members(path: Path) -> dict[str, tuple[int, tuple[int, ...], int, bytes]]:
    """What each file of an archive is: how it is stored, when it is from, its mode and its bytes."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"kept"
        return {
            each.filename: (each.compress_type, each.date_time, each.external_attr, archive.read(each))
            for each in archive.infolist()
        }


def test_writing_into_an_archive_leaves_all_else_as_it_was(mar: Path, tmp_path: Path) -> None:
    """Twice: the second reference takes the place of the first."""
    path = Path(shutil.copy(mar, tmp_path))
    before = members(path)
    for text in ("{}", '{"second": 1}'):
        reference.put(path, FILE, text)
        after = members(path)
        assert after.pop(FILE)[3] == text.encode()
        assert after == before
        assert len(zipfile.ZipFile(path).namelist()) == len(before) + 1
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


def test_a_failed_write_leaves_the_old_archive_and_nothing_else(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or an interruption, in the midst of it."""
    path = Path(shutil.copy(mar, tmp_path))
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference.put(path, FILE, "{}")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 pictures in two folders, one of them damaged, beside a file that is no picture."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "more").mkdir()
    for seed in range(130):
        left, top = np.random.default_rng(seed).integers(0, 48, 2)
        pixels = small.square(80, 64, int(left) + 8, int(top), 16) // 2 + small.noise(80, 64, seed) // 4
        (path / ("more" if seed % 2 else ".") / f"{seed:03}.png").write_bytes(small.encoded(pixels.astype(np.uint8)))
    (path / "200.jpg").write_bytes(b"\xff\xd8\xff broken")
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture
def made(mar: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """The archive with a reference made by the command, and what it printed."""
    path = Path(shutil.copy(mar, tmp_path))
    assert reference.main(["--archive", str(path), str(folder)]) == 0
    return path, capsys.readouterr().out


def test_the_command_measures_a_folder_and_writes_the_reference(made: tuple[Path, str]) -> None:
    """It says what it found, and which picture did not count."""
    path, printed = made
    with zipfile.ZipFile(path) as archive:
        found = Reference.from_json(archive.read(FILE).decode())

    assert found.images == 130
    assert (found.made.layer, found.made.method) == ("features", "gradcam++")
    assert all(found.counts[name].sum() == 130 for name in ("confidence", "brightness", "width"))
    assert "1 pictures were refused" in printed
    assert "200.jpg" in printed
    assert "130 pictures of" in printed
    assert "\x1b" not in printed


def test_a_worker_bins_the_reference_pictures_into_the_references_counts(made: tuple[Path, str], folder: Path) -> None:
    """The command and the worker measure alike: the same pictures again give the reference's own counts, to the last one."""
    path, _ = made
    lines: list[bytes] = []
    with archives.open_archive(path) as opened:
        service = monitored(opened.directory)
        handler = service._entry_point.__self__
        handler.pipeline.watcher._exporter._write = lines.append
        rows = [Row({"body": each.read_bytes()}) for each in reference.pictures([folder])]
        for start in range(0, len(rows), 8):
            ask(service, rows[start : start + 8])
        handler.pipeline.watcher.close()
        found = load(opened.directory, handler.made)
        described = handler.metadata["monitor"]

    assert found is not None
    told: dict[tuple[str, int], int] = {}
    for line in b"".join(lines).decode().split("\n"):
        if line.startswith("[METRICS]camserve_map_bin_total."):
            value, stat, place = (
                line.split(":")[1].partition("|")[0],
                line.split("stat:")[1].split(",")[0],
                line.split("bin:")[1].split(",")[0],
            )
            told[stat, int(place)] = told.get((stat, int(place)), 0) + int(value)
    for name in STATISTICS:
        assert [told.get((name, place), 0) for place in range(BINS)] == found.counts[name].sum(0).tolist(), name
    assert [told.get(("class", place), 0) for place in range(BINS)] == found.group_images.tolist()
    assert described["reference"] == {"images": 130, "classes": len(found.groups)}


def test_every_picture_is_measured_where_maps_take_backward_passes(tmp_path: Path, folder: Path) -> None:
    """A worker has a budget for that; the reference has none, and knows the runner-up's overlap of all."""
    curved = "return self.fc(torch.tanh(self.features(x).mean((2, 3))))"
    path = small.archive(tmp_path / "curved", fault=curved)
    assert reference.main(["--archive", str(path), str(folder)]) == 0
    found = Reference.from_json((path / FILE).read_text())

    assert monitored(path)._entry_point.__self__.backend.closed_form == ()
    assert {name: table.sum() for name, table in found.counts.items()} == dict.fromkeys(STATISTICS, 130)


def test_a_server_that_does_not_declare_the_metrics_is_told_nothing(made: tuple[Path, str]) -> None:
    """Without metrics.yaml every line would be dropped; the handler does not measure in vain, and its metadata say so."""
    with archives.open_archive(made[0]) as opened:
        handler = archives.load_service(opened.directory)._entry_point.__self__

    assert handler.metadata["monitor"] is None


def test_too_few_pictures_are_refused(mar: Path, folder: Path, tmp_path: Path) -> None:
    """Shares of ten bins of a few dozen pictures are chance."""
    with pytest.raises(ToolError, match=r"at least 100 pictures .*, found 65"):
        reference.make(mar, [folder / "more"], Progress())
    with pytest.raises(ToolError, match="no picture and no folder"):
        list(reference.pictures([tmp_path / "nothing"]))


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock handler has no maps to measure."""
    stock = small.archive(tmp_path / "stock", handler="stock")

    assert reference.main(["--archive", str(stock), str(folder)]) == 1
    assert "the archive's handler is not camserve's" in capsys.readouterr().err
