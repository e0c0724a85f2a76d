"""The speed benchmark runs, and its page says what was found. No figure is judged here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from benchmarks import gpu, run
from benchmarks.speed import conditions, engine, scaling
from benchmarks.speed.report import plots, tables
from torch import nn


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short ResNet for ResNet-50, with the same layers, in one thread: it is too small for more."""

    def made(channels_last: bool) -> nn.Module:
        model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]).eval()
        return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    for module in (engine, scaling):
        monkeypatch.setattr(module, "resnet50", made)
    monkeypatch.setattr(engine, "FORMATS", {"contiguous": False})
    monkeypatch.setattr(engine, "SIZE", (96, 96))
    monkeypatch.setattr(engine, "pictures_of", partial(engine.pictures_of, size=(96, 96)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("small")
def test_the_engine_is_measured_and_saves_less_than_the_peers(capsys: pytest.CaptureFixture[str]) -> None:
    """What is saved for backward is counted, not timed."""
    found = engine.measure(1, print, batch=1)

    assert all(row["median"] > 0 for row in found["rows"])
    assert found["saved"]["camserve, closed form"] == 0
    assert found["saved"]["camserve, autograd"] < 2 < found["saved"]["captum"]
    assert "warm-up: autograd" in capsys.readouterr().out


def test_a_round_runs_everything_once_and_the_first_is_dropped() -> None:
    """Ratios are of the same round, so that what slows a whole round does not count."""
    ticks = iter(range(100))
    work: dict[str, Callable[[], float]] = {"one": lambda: next(ticks), "other": lambda: next(ticks)}

    found = conditions.alternate(work, 3)

    assert sorted(found["one"] + found["other"]) == list(range(2, 8))
    assert all(abs(one - other) == 1 for one, other in zip(found["one"], found["other"], strict=True))
    assert conditions.ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]


def test_the_page_keeps_what_others_wrote(tmp_path: Path) -> None:
    """Tables stand between two markers; each goal says whether it is met."""
    row = {"median": 1.0412, "low": 1.03, "high": 1.05}
    part = {"conditions": {"date": "2026-01-02", "model": "net, random weights", "cores": "2"}}
    rows = [{"what": "cost", "goal": 1.05, "side": "most", **row}, {"what": "gain", "goal": 1.5, "side": "least", **row}]
    tables.save("engine", {**part, "rows": rows, "saved": {"net": 0.4}}, tmp_path)
    tables.save("scaling-engine", {**part, "curves": {"batch": [{"at": 1, "plain": 0.1, "autograd": row}]}}, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"# Ours\n\n{tables.BEGIN}\nold\n{tables.END}\n\n## Theirs\n")

    found = tables.load(tmp_path)
    tables.write(found, readme, ["plots/cost.svg"])

    text = readme.read_text()
    assert text.startswith("# Ours\n")
    assert text.endswith(f"{tables.END}\n\n## Theirs\n")
    assert "old" not in text
    assert "| cost | 1.041 (1.030 to 1.050) | ≤ 1.05 | yes |" in text
    assert "| gain | 1.04 (1.03 to 1.05) | ≥ 1.5 | no |" in text
    assert "![cost](plots/cost.svg)" in text
    assert "cores: 2" in text


def test_curves_are_drawn(tmp_path: Path) -> None:
    """The same figures give the same file."""
    row = {"median": 1.04, "low": 1.03, "high": 1.05}
    curves = {name: [{"at": at, "plain": 0.1, "autograd": row} for at in (1, 2)] for name in plots.TITLES}
    found = {
        "scaling-engine": {"curves": curves},
        "memory-net": {"conditions": {"model": "net"}, "curve": [{"explanations": 9, "MiB": 5}]},
    }

    made = plots.draw(found, tmp_path / "plots")

    files = [(tmp_path / name).read_bytes() for name in made]
    assert made == ["plots/cost.svg", "plots/memory.svg"]
    assert plots.draw(found, tmp_path / "plots") == made
    assert [(tmp_path / name).read_bytes() for name in made] == files


def test_a_quick_run_keeps_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It shows its tables; the recorded figures and the page stay."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    found = {"conditions": {"date": "2026-01-02"}, "saved": {"net": 0.4}}
    monkeypatch.setattr(run, "parts", lambda options, _: {"engine": lambda: found})

    assert run.main(["--quick", "--only", "engine"]) == 0

    assert "0.40" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert json.dumps(found)


def test_without_a_gpu_nothing_is_measured_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit status says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().out
