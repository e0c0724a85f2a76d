"""The reference: even bins, groups of classes, and an archive that is rewritten without harm."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks.drift.psi import drift
from benchmarks.drift.run import divided, wilson
from tests.support import build as small
from tests.support.processes.worker import load_monitored

from camserve.core.config import Config
from camserve.monitoring.measure import Measured
from camserve.monitoring.reference import (
    BINS,
    CLASS,
    FILE,
    INPUT,
    PER_GROUP,
    UNSEEN,
    Provenance,
    Reference,
    StaleReference,
    input_of,
    load,
)
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS
from camserve.tools.archive import archive as archives
from camserve.tools.archive.fresh.worker import Row, ask
from camserve.tools.commands import reference
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports.pictures import list_pictures
from camserve.tools.watching.baseline import FEWEST, attention_of, build, edges_of, group_classes


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
    assert max(group_classes(list(range(500)) * 2).values()) == UNSEEN - 1
    assert group_classes([]) == {}


SKEWED = {
    "98 to 2 %": [0] * 980 + [1] * 20,
    "a class, and 20 that came up once": [0] * 980 + list(range(1, 21)),
    "a class, and 20 that came up twice": [0] * 960 + list(range(1, 21)) * 2,
    "three classes and a rare one": [0] * 500 + [1] * 330 + [2] * 150 + [3] * 20,
    "all came up once": list(range(200)),
    "98 to 2 % of few": [0] * 98 + [1] * 2,
}


@pytest.mark.parametrize("targets", SKEWED.values(), ids=SKEWED)
def test_small_groups_of_classes_are_merged(targets: list[int]) -> None:
    """No group is of a handful of pictures; and no share of bins is of fewer than fifty, where the reference has as many."""
    found = reference_of(targets)
    sizes = found.group_images
    groups = sorted(set(found.groups.values()))
    pools = [frozenset(pool) for pool in found._pools()]

    assert len(groups) == 1 or min(sizes[groups]) >= FEWEST
    assert sorted(group for pool in pools for group in pool) == groups
    assert len(pools) == 1 or min(sizes[sorted(pool)].sum() for pool in pools) >= PER_GROUP
    for pool in pools:
        rows = [found.shares("area")[group].tolist() for group in pool]
        assert all(row == rows[0] for row in rows)
    assert found.shares("area")[groups].sum(1) == pytest.approx([1.0 if sizes[groups].any() else 0.0] * len(groups))


def test_a_rare_class_keeps_a_group_of_its_own_in_the_class_mix() -> None:
    """Its 20 pictures of 1,000 are too few for shares of bins, which it has together with others, and enough for one share."""
    assert reference_of(SKEWED["98 to 2 %"]).group_images[:2].tolist() == [980, 20]
    found = reference_of(SKEWED["three classes and a rare one"])
    assert sorted(found.group_images[:4].tolist()) == [20, 150, 330, 500]
    assert {len(pool) for pool in found._pools()} == {1, 2}
    assert reference_of(SKEWED["98 to 2 % of few"]).group_images[:2].tolist() == [100, 0]


def test_attention_of_a_class_with_few_pictures_or_maps_of_several_sizes_is_left_out() -> None:
    """A mean of nineteen maps is mostly chance; maps of different sizes have none."""
    square, wide = np.full((2, 2), 0.25), np.full((1, 4), 0.25)
    shares: list[Any] = [square] * 19 + [square] * 20 + [square] * 19 + [wide]

    assert set(attention_of([1] * 19 + [2] * 20 + [3] * 20, shares)) == {2}


def traffic(targets: Any, random: np.random.Generator, fault: Any = ()) -> Measured:
    """Made-up pictures of these classes; each class has its own place in every statistic; of some classes most maps say nothing."""
    targets = np.asarray(targets)
    values = {name: random.normal(targets * 0.37 % 1, 0.5) for name in STATISTICS}
    silent = np.isin(targets, fault) & (random.random(len(targets)) < 0.8)
    for name in MAP_STATISTICS:
        values[name][silent] = np.nan
    return Measured(values, targets.tolist(), ["zero" if each else "" for each in silent])


def reference_of(targets: Any, seed: int = 0, fault: Any = ()) -> Reference:
    """The reference of such pictures."""
    return build(traffic(targets, np.random.default_rng(seed), fault), [None] * len(targets), Provenance("l", "m", "w"))


def test_how_many_pictures_the_shares_of_unseen_classes_are_known_from() -> None:
    """All, where too few classes came up once; their own, where these are enough."""
    few = reference_of([0] * 60 + list(range(1, PER_GROUP)))
    many = reference_of([0] * 60 + list(range(1, PER_GROUP + 1)))

    assert (few.group_images[UNSEEN], few.known_images[UNSEEN]) == (PER_GROUP - 1, 60 + PER_GROUP - 1)
    assert many.group_images[UNSEEN] == many.known_images[UNSEEN] == PER_GROUP
    assert few.known_images[0] == few.group_images[0] == 60


def test_what_came_up_once_counts_as_unseen() -> None:
    """Good's estimate: so many predictions to come are of classes that the reference never saw, and of the others fewer."""
    found = reference_of([0] * 60 + [1] * 50 + [2] * 50 + [3, 4, 5, 6] + [7] * 36)

    assert found.group_images[UNSEEN] == 4
    assert found.group_images.sum() == found.images == 200
    assert {found.group(index) for index in (3, 4, 5, 6)} <= set(range(UNSEEN))
    assert found.group(8) == UNSEEN
    assert found.counts["area"].sum(1).tolist() == found.group_images.tolist()
    assert found.table("area")[UNSEEN].sum() == 0
    assert found.table("width")[UNSEEN].sum() == 4


def zipf(classes: int) -> Any:
    """Probabilities by Zipf's law."""
    weights = 1 / np.arange(1, classes + 1)
    return weights / weights.sum()


@pytest.mark.parametrize(("classes", "images"), [(1000, 1000), (100, 300), (30, 200)])
def test_long_tailed_clean_traffic_is_no_drift_of_the_class_mix(classes: int, images: int) -> None:
    """There are always classes that the reference has not seen; of 900 windows one in a thousand may be taken for drift."""
    random = np.random.default_rng(2)
    alarms: Counter[str] = Counter()
    estimated, actual = [], []
    for _ in range(60):
        found = reference_of(random.choice(classes, images, p=zipf(classes)))
        estimated.append(found.group_images[UNSEEN] / images)
        actual.append(sum(p for index, p in enumerate(zipf(classes)) if index not in found.groups))
        for _ in range(5):
            for window in (250, 1000, 4000):
                seen = Measured(found_nothing(window), random.choice(classes, window, p=zipf(classes)).tolist(), [""] * window)
                alarms.update(drift(seen, found).alarms)

    assert alarms[CLASS] <= 3
    assert np.mean(estimated) == pytest.approx(np.mean(actual), abs=0.01)


def found_nothing(pictures: int) -> dict[str, Any]:
    """Statistics that no picture has."""
    return {name: np.full(pictures, np.nan) for name in STATISTICS}


def test_another_class_mix_is_still_told_where_there_are_many_classes() -> None:
    """The tail's share is half as large again, or twenty classes come that were never seen before."""
    random = np.random.default_rng(2)
    found = reference_of(random.choice(1000, 1000, p=zipf(1000)))
    more = random.choice(1000, 1000, p=(zipf(1000) ** 0.5) / (zipf(1000) ** 0.5).sum())
    new = np.where(random.random(1000) < 0.25, 1000 + random.integers(0, 20, 1000), random.choice(1000, 1000, p=zipf(1000)))

    for targets in (more, new):
        assert drift(Measured(found_nothing(1000), targets.tolist(), [""] * 1000), found).alarms == [CLASS]


def test_pictures_of_unseen_classes_are_no_drift_of_attention() -> None:
    """Half of the window's are of a class that is looked at elsewhere: the mix has changed, and nothing else is said of maps."""
    random = np.random.default_rng(3)
    found = reference_of(random.integers(0, 4, 800))
    window = traffic(random.integers(0, 8, 1000), random)
    for name in MAP_STATISTICS:
        window.values[name][np.array(window.targets) >= 4] += 3
    told = drift(window, found)

    assert set(told.alarms) & {CLASS, *MAP_STATISTICS} == {CLASS}
    assert told.images["area"] == sum(target < 4 for target in window.targets)
    assert told.images["width"] == 1000


def test_pictures_of_unseen_classes_are_expected_to_be_like_those_of_classes_that_came_up_once() -> None:
    """Of the scores and of the pictures themselves all count: that rare things are darker, and less certain, is no drift."""
    random = np.random.default_rng(7)
    several = [traffic([0] * 500 + list(range(start, start + 100)), random) for start in (1, 101)]
    for each in several:
        for name in ("confidence", "brightness"):
            each.values[name][500:] = random.normal(-3, 0.5, 100)
    found = build(several[0], [None] * 600, Provenance("l", "m", "w"))

    assert drift(several[1], found).images["area"] == 500
    assert drift(several[1], found).alarms == []


def test_maps_that_mostly_say_nothing_of_one_class_are_no_drift() -> None:
    """Four of five of class 1's maps in the reference and in the window alike: fewer of them are to be expected."""
    random = np.random.default_rng(4)
    found = reference_of(random.integers(0, 2, 4000), fault=[1])
    told = drift(traffic(random.integers(0, 2, 4000), random, fault=[1]), found)

    assert found.shares("area")[[found.group(0), found.group(1)]].sum(1) == pytest.approx([1, 0.2], abs=0.03)
    assert max(told.psi[name] for name in MAP_STATISTICS) < 0.02
    assert told.alarms == []


def test_few_pictures_and_few_maps_say_nothing() -> None:
    """250 pictures are wanted, a hundred of them of known classes for what is said of maps."""
    random = np.random.default_rng(6)
    found = reference_of(random.integers(0, 2, 1000))
    moved = traffic(random.integers(0, 2, 400), random)
    for name in MAP_STATISTICS:
        moved.values[name][:] += 3
    strange = Measured(moved.values, [7] * 301 + moved.targets[301:], moved.reasons)

    assert set(drift(moved, found).alarms) == set(MAP_STATISTICS)
    assert drift(divided(moved, 249)[0], found).alarms == []
    assert drift(strange, found).images["area"] == 99
    assert drift(strange, found).alarms == [CLASS]


def test_the_benchmarks_windows_share_no_picture_and_its_intervals_are_wilsons() -> None:
    """Of 1,000 pictures there are four windows of 250 and one of 600; the intervals are those of the literature's tables."""
    pool = Measured({"area": np.arange(1000.0)}, list(range(1000)), [""] * 1000)

    assert [window.targets for window in divided(pool, 250)] == [list(range(start, start + 250)) for start in (0, 250, 500, 750)]
    assert [len(window.values["area"]) for window in divided(pool, 600)] == [600]
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1, 48) == pytest.approx((0.9259, 1), abs=1e-4)


def test_the_threshold_knows_from_how_many_maps_the_expectation_is() -> None:
    """Two groups, of one of which few maps were measured: the variance of each share is that of as many."""
    found = reference_of([0] * 500 + [1] * 500, fault=[1])
    window = traffic([0] * 200 + [1] * 200, np.random.default_rng(5), fault=[1])
    told = drift(window, found)
    measured = found.table("area").sum(1)[:2].sum()

    assert told.threshold["area"] == pytest.approx(27.877 * (1 / told.images["area"] + 1 / measured))


@pytest.fixture
def found() -> Reference:
    """A reference of 120 made-up pictures of two classes."""
    random = np.random.default_rng(0)
    values = {name: random.random(120) for name in STATISTICS}
    values["overlap"][:20] = np.nan
    targets = [4] * 70 + [9] * 50
    shares: list[Any] = [np.array([[0.25, 0.75]])] * 30 + [np.array([[0.75, 0.25]])] * 40 + [None] * 50
    return build(Measured(values, targets, [""] * 120), shares, Provenance("features", "gradcam++", "sha256:1"))


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
    assert again.digest == found.digest


def test_a_remade_reference_has_another_name(found: Reference) -> None:
    """Its bins are others, and counts by the old ones must not be added to them."""
    names = {reference_of(range(200), seed).digest for seed in range(20)}

    assert len(names) == 20
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in names)


@pytest.mark.parametrize(
    "age",
    [
        lambda values: {**values, "format": 1},
        lambda values: {**values, "made": {name: value for name, value in values["made"].items() if name != "input"}},
    ],
)
def test_a_reference_of_an_older_release_is_told_and_not_used(found: Reference, tmp_path: Path, age: Any) -> None:
    """What it counts as unseen, or what its pictures went through, is not known."""
    (tmp_path / FILE).write_text(json.dumps(age(json.loads(found.to_json()))))

    with pytest.raises(StaleReference, match=f"{FILE} is of an older release; make it again"):
        load(tmp_path, found.made)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"format":2', '"format":3'),
        lambda text: text.replace('"format":2', '"format":"2"'),
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
        load(tmp_path, Provenance(**{**vars(found.made), name: now}))


OTHERS = {
    "resize": 288,
    "crop": [224, 192],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.25],
    "exif": True,
    "precision": "bfloat16",
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_reference_of_pictures_prepared_otherwise_is_told_and_not_used(found: Reference, tmp_path: Path, key: str) -> None:
    """The message says what it was, and what it is."""
    now, then = Config.from_mapping({key: OTHERS[key]}), Config()
    (tmp_path / FILE).write_text(
        reference_of(range(200)).to_json().replace('"input":""', f'"input":{json.dumps(input_of(then))}')
    )

    assert set(OTHERS) == set(INPUT)
    assert load(tmp_path, Provenance("l", "m", "w", input_of(then))) is not None
    with pytest.raises(StaleReference) as told:
        load(tmp_path, Provenance("l", "m", "w", input_of(now)))
    before, after = (json.dumps(getattr(each, key), separators=(",", ":")) for each in (then, now))
    assert str(told.value) == f"{FILE} was made with {key}={before}, the archive now has {key}={after}; make it again"


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


def test_a_link_stays_one_and_what_it_points_to_is_rewritten(mar: Path, tmp_path: Path) -> None:
    """A model store may hold links to the archives of a release."""
    (tmp_path / "store").mkdir()
    path = Path(shutil.copy(mar, tmp_path))
    link = tmp_path / "store" / "served.mar"
    link.symlink_to("../small.mar")
    reference.put(link, FILE, "{}")

    assert link.is_symlink()
    assert members(path)[FILE][3] == b"{}"
    assert [each.name for each in (tmp_path / "store").iterdir()] == ["served.mar"]


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


def test_the_command_says_how_much_to_expect_of_unseen_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """By those that came up once; nothing, where none did."""
    handler = SimpleNamespace(labels=[str(index) for index in range(20)])
    for targets in ([0] * 180 + list(range(1, 11)) * 2, [0] * 190 + list(range(1, 11))):
        found = traffic(targets, np.random.default_rng(0), ())
        reference._say(found, reference_of(targets), {}, handler, Progress())
    first, last = capsys.readouterr().out.split("200 pictures of")[1:]

    assert "came up once" not in first
    assert "10 of them (5.0%) are of classes that came up once: expect as many" in " ".join(last.split())


def test_a_worker_bins_the_reference_pictures_into_the_references_counts(made: tuple[Path, str], folder: Path) -> None:
    """The command and the worker measure alike: the same pictures again give the reference's own counts, to the last one."""
    path, _ = made
    lines: list[bytes] = []
    with archives.open_archive(path) as opened:
        service = load_monitored(opened.directory)
        handler = service._entry_point.__self__
        handler.pipeline.observer._exporter._write = lines.append
        rows = [Row({"body": each.read_bytes()}) for each in list_pictures([folder])]
        for start in range(0, len(rows), 8):
            ask(service, rows[start : start + 8])
        handler.pipeline.observer.close()
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
    mix = [told.get(("class", place), 0) for place in range(BINS)]
    assert (mix[UNSEEN], sum(mix)) == (0, 130)
    assert all(seen >= repeated for seen, repeated in zip(mix[:UNSEEN], found.group_images[:UNSEEN], strict=True))
    assert described["reference"] == {"id": found.digest, "images": 130, "classes": len(found.groups)}


def test_an_archive_whose_preprocessing_was_edited_has_no_reference_any_more(made: tuple[Path, str]) -> None:
    """The worker serves, and says what has changed."""
    path, _ = made
    with archives.open_archive(path) as opened:
        config = opened.config
    assert monitored_reference(path) is not None
    reference.put(path, "model-config.yaml", yaml.safe_dump({**config, "explain": {**config["explain"], "exif": True}}))

    assert monitored_reference(path) == f"{FILE} was made with exif=false, the archive now has exif=true; make it again"


def monitored_reference(path: Path) -> Any:
    """What a worker of an archive tells of its reference, or why it has none."""
    with archives.open_archive(path) as opened:
        told = load_monitored(opened.directory)._entry_point.__self__.metadata["monitor"]
    return told["reference"] or told["why"]


def test_every_picture_is_measured_where_maps_take_backward_passes(tmp_path: Path, folder: Path) -> None:
    """A worker has a budget for that; the reference has none, and knows the runner-up's overlap of all."""
    curved = "return self.fc(torch.tanh(self.features(x).mean((2, 3))))"
    path = small.archive(tmp_path / "curved", fault=curved)
    assert reference.main(["--archive", str(path), str(folder)]) == 0
    found = Reference.from_json((path / FILE).read_text())

    assert load_monitored(path)._entry_point.__self__.backend.closed_form == ()
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
        list(list_pictures([tmp_path / "nothing"]))


def test_an_archive_of_another_handler_is_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock handler has no maps to measure."""
    stock = small.archive(tmp_path / "stock", handler="stock")

    assert reference.main(["--archive", str(stock), str(folder)]) == 1
    assert "the archive's handler is not camserve's" in capsys.readouterr().err


def said(path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it fails; it must be one line."""
    assert reference.main(["--archive", str(path), str(pictures)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_an_archive_that_does_not_load_is_told_in_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its model raises."""
    broken = small.archive(tmp_path / "broken", fault="raise ZeroDivisionError('no\\nluck')")
    lacking = small.archive(tmp_path / "lacking")
    (lacking / "model.py").write_text("import a_module_that_nobody_has")

    assert "no luck" in said(broken, folder, capsys)
    assert f"{lacking} does not load: ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in said(
        lacking, folder, capsys
    )


def refuse(error: Exception) -> Any:
    """A function that raises this."""

    def refusing(*_: object, **__: object) -> None:
        raise error

    return refusing


def test_an_archive_that_cannot_be_rewritten_is_told_before_anything_is_measured(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that is mounted for reading only, or a disk that is full."""
    path = Path(shutil.copy(mar, tmp_path))
    monkeypatch.setattr(reference, "open_archive", refuse(AssertionError("it went on")))
    with monkeypatch.context() as read_only:
        read_only.setattr(reference.tempfile, "NamedTemporaryFile", refuse(OSError(errno.EROFS, "Read-only file system")))
        assert f"{path} cannot be rewritten: in {tmp_path}: Read-only file system" in said(path, folder, capsys)
    with monkeypatch.context() as full:
        full.setattr(reference.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, path.stat().st_size))
        assert f"are needed in {tmp_path}, and {path.stat().st_size} are free" in said(path, folder, capsys)
    assert "it went on" in said(path, folder, capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["small.mar"]


def test_an_archive_of_another_kind_is_told_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch-model-archiver also makes .tar.gz."""
    monkeypatch.setattr(reference, "open_archive", refuse(AssertionError("it went on")))
    path = tmp_path / "small.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    assert f"{path} cannot be rewritten: expected a .mar (a zip archive) or a folder" in said(path, folder, capsys)


def test_a_disk_that_fills_up_meanwhile_is_told_and_leaves_the_archive_as_it_was(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others write too."""
    path = Path(shutil.copy(mar, tmp_path))
    monkeypatch.setattr(reference, "_copy", refuse(OSError(errno.ENOSPC, "No space left on device")))

    assert f"{path} cannot be rewritten, and is as it was: No space left on device" in said(path, folder, capsys)
    assert path.read_bytes() == mar.read_bytes()


def test_pictures_that_cannot_be_read_do_not_count(
    mar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told like those that the model refuses, and end nothing."""
    path = Path(shutil.copy(mar, tmp_path))
    whole = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name in ("000.png", "128.png"):  # one beside the one that the model refuses
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", read)

    assert reference.make(path, [folder], Progress()).images == 128
    printed = capsys.readouterr().out
    assert "3 pictures were refused and do not count" in printed
    assert f"{folder / '000.png'}: cannot be read: Permission denied" in printed
