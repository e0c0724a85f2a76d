"""Which layer and method: what is measured of a model that looks where it should, the rule, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.build import encoded, noise
from torch import Tensor, nn

from camserve.capture.backend import Backend, open_backend
from camserve.core.config import Config
from camserve.explain.methods import METHODS
from camserve.pictures.preprocess import Preprocess
from camserve.tools.console import ToolError
from camserve.tools.reports.inspection import fidelity
from camserve.tools.reports.inspection.choice import choose
from camserve.tools.reports.inspection.fidelity import Measured, compose, draw_anew, measure
from camserve.tools.reports.inspection.measuring import Opened, measure_model
from camserve.tools.reports.inspection.page import write_report

CONFIG = Config(resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3, channels_last=False)
SIDE = 64
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def seeing_colours() -> nn.Sequential:
    """Four classes, each a colour: red, green, blue, yellow; its cells are eight pixels wide, and then sixteen."""
    cells = nn.Conv2d(3, 4, 8, stride=8)
    with torch.no_grad():
        cells.weight.zero_()
        for place, colours in enumerate(((1, -1, -1), (-1, 1, -1), (-1, -1, 1), (0.5, 0.5, -1))):
            cells.weight[place] = torch.tensor(colours)[:, None, None] / 64
        cells.weight[0, 1] *= 2  # yellow is neither red nor green
        cells.weight[1, 0] *= 2
        cells.get_parameter("bias").fill_(-0.1)
    head = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(8 * torch.eye(4))
    return nn.Sequential(cells, nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def spots(count: int = 8) -> list[Tensor]:
    """Dark inputs with a spot of one of the colours each."""
    inputs = []
    for seed in range(count):
        picture = noise(SIDE, SIDE, seed) // 32
        top, left = np.random.default_rng(seed).integers(8, 32, 2)
        picture[top : top + 20, left : left + 20] = COLOURS[seed % 4]
        inputs.append(torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 255))
    return inputs


def measured_of(module: nn.Module, inputs: list[Tensor], methods: list[str], *layers: str) -> dict[Any, Measured]:
    """What is measured of it."""

    def opened() -> Backend:
        config = Config(**{**vars(CONFIG), "layers": layers})
        return open_backend(module, config, (SIDE, SIDE), torch.device("cpu"))

    return measure(opened, module, inputs, methods)


@pytest.fixture(scope="module")
def found() -> dict[Any, Measured]:
    """Of the classifier of colours, at two layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "MOSAICS", 6)
        return measured_of(seeing_colours(), spots(), ["gradcam", "gradcam++"], "1", "2")


def test_a_model_that_looks_at_colours_is_measured_so(found: dict[Any, Measured]) -> None:
    """Its maps lie in their own quarters, the spots decide the scores, and other classes have other maps."""
    one = found["1", "gradcam"]

    assert set(found) == {(layer, method) for layer in ("1", "2") for method in ("gradcam", "gradcam++")}
    assert (len(one.gain), len(one.pointing)) == (8, 4 * 6)
    assert np.mean(one.pointing) > 0.8
    assert np.mean(one.gain) > 0.2
    assert np.mean(one.support) > 0.2
    assert np.mean(np.abs(one.other_class)) < 0.5
    assert np.mean(one.random_weights) < 0.9


def test_maps_that_do_not_depend_on_the_class_point_nowhere() -> None:
    """Where every class reads the same, a quarter's share is what the picture makes it: on average a quarter."""
    module = seeing_colours()
    with torch.no_grad():
        module.get_parameter("5.weight").copy_(1 + torch.eye(4) * 1e-3)

    (one,) = measured_of(module, spots(), ["gradcam"], "1").values()

    assert np.mean(one.pointing) == pytest.approx(0.25, abs=0.02)
    assert np.mean(one.other_class) > 0.99


def test_a_mosaic_is_of_its_four_pictures() -> None:
    """Each scaled to its own quarter, also where a side is odd."""
    four = [torch.full((3, 33, 20), float(value)) for value in range(4)]

    mosaic = compose(four)

    assert mosaic.shape == (3, 33, 20)
    assert mosaic[0, :16, :10].abs().max() == 0
    assert mosaic[0, :16, 10:].numpy() == pytest.approx(1.0)
    assert mosaic[0, 16:, :10].numpy() == pytest.approx(2.0)
    assert mosaic[0, 16:, 10:].numpy() == pytest.approx(3.0)


def test_weights_are_drawn_anew_and_put_back() -> None:
    """The same values in another order meanwhile, and afterwards every bit as before, whatever happens."""
    module = seeing_colours()
    before = {name: each.clone() for name, each in module.named_parameters()}

    try:
        with draw_anew(module) as drawn:
            shuffled = module.get_parameter("0.weight").detach().clone()
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert drawn
    assert not torch.equal(shuffled, before["0.weight"])
    assert torch.equal(shuffled.flatten().sort().values, before["0.weight"].flatten().sort().values)
    assert all(torch.equal(each, before[name]) for name, each in module.named_parameters())
    with draw_anew(object()) as drawn:
        assert not drawn


def values(
    gain: float, pointing: float, alike: float = 0.1, cost: float = 1.0, noise_of: float = 0.05, seed: int = 5
) -> Measured:
    """What could be measured on twenty pictures and ten mosaics."""
    random = np.random.default_rng(seed)
    gains, shares = random.normal(gain, noise_of, 20), random.normal(pointing, noise_of, 40)
    return Measured(shares.tolist(), gains.tolist(), gains.tolist(), [0.2] * 20, [alike] * 20, cost)


OWN, OTHER, THIRD = ("a", "gradcam++"), ("a", "gradcam"), ("b", "gradcam")


@pytest.mark.parametrize(
    ("measured", "best", "why"),
    [
        ({OWN: values(0.3, 0.4), OTHER: values(0.5, 0.8)}, OTHER, "surely above all others"),
        ({OWN: values(0.5, 0.79, noise_of=0.3, seed=6), OTHER: values(0.5, 0.8, noise_of=0.3)}, OWN, "the archive's own"),
        ({OWN: values(0.5, 0.8, alike=0.9), OTHER: values(0.4, 0.7)}, OTHER, "surely above"),
        (
            {OWN: values(0.1, 0.3), OTHER: values(0.5, 0.8, cost=3.0), THIRD: values(0.5, 0.8, cost=1.2)},
            THIRD,
            "the cheapest of those that may have the best score; 1 other may be as good; the archive's own is surely below it",
        ),
    ],
)
def test_the_best_is_chosen_by_the_rule(measured: dict[Any, Measured], best: tuple[str, str], why: str) -> None:
    """A clear winner; the archive's own where nothing speaks against it; no map that is alike under any weights; the cheapest."""
    report = choose(measured, OWN)

    assert (report["best"]["layer"], report["best"]["method"]) == best
    assert why in report["why"]
    row = next(each for each in report["rows"] if (each["layer"], each["method"]) == best)
    gain = row["figures"]["gain"]
    assert gain["mean"] == pytest.approx(np.mean(measured[best].gain), abs=1e-4)
    half = 1.96 * np.std(measured[best].gain) / 20**0.5
    assert gain["high"] - gain["low"] == pytest.approx(2 * half, rel=0.2)
    pointing = (np.mean(measured[best].pointing) - 0.25) / 0.75
    assert row["score"]["mean"] == pytest.approx((np.mean(measured[best].gain) + pointing) / 2, abs=1e-4)


def test_figures_are_the_same_whatever_else_is_measured() -> None:
    """So a report can be made anew in parts; and where there is nothing else, nothing is said of others."""
    both = choose({THIRD: values(0.1, 0.3, seed=9), OWN: values(0.3, 0.4)}, OWN)
    alone = choose({OWN: values(0.3, 0.4)}, OWN)

    assert {**alone["rows"][0], "tied": None} == {**both["rows"][1], "tied": None}
    assert alone["why"] == "gradcam++ of a: nothing else was measured"


def test_where_all_maps_are_alike_under_any_weights_the_choice_says_so() -> None:
    """There is no better one, and nobody may take it for a good one."""
    report = choose({OWN: values(0.5, 0.8, alike=0.9), OTHER: values(0.4, 0.7, alike=0.8)}, OWN)

    assert report["best"] == {"layer": "a", "method": "gradcam++"}
    assert "may show the picture alone" in report["why"]


def test_the_quarters_of_a_mosaic_are_no_pictures_of_their_own() -> None:
    """They are drawn together: mosaics that agree have no spread, however far their quarters lie apart."""
    report = choose({OWN: Measured([0.1, 0.9, 0.3, 0.7] * 10, [0.4] * 20, [0.1] * 20)}, OWN)

    assert report["rows"][0]["figures"]["pointing"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_without_mosaics_the_score_is_of_insertion_and_deletion_alone(tmp_path: Path) -> None:
    """And the report says so; what was not measured is a dash."""
    report = choose({OWN: Measured([], [0.1] * 5, [0.1] * 5), OTHER: Measured([], [0.4] * 5, [0.4] * 5)}, OWN)

    assert report["best"] == {"layer": "a", "method": "gradcam"}
    assert report["rows"][0]["figures"]["pointing"] is None
    report |= {"made": "2026-11-30", "weights": "sha256:9f", "input": "resize=64", "versions": {"torch": "2"}}
    report |= {"pictures_digest": "sha256:d1", "measured_on": [{"name": "<a>.png", "sha256": "f0"}], "left_out": []}
    told, page = write_report(report, "<b>a model</b>", tmp_path / "report")
    assert json.loads(told.read_text()) == report
    assert "fewer than four classes" in page.read_text()
    assert "<b>" not in page.read_text()
    assert "<td>-</td>" in page.read_text()
    assert all(each in page.read_text() for each in ("sha256:9f", "resize=64", "sha256:d1", "f0  &lt;a&gt;.png"))
    assert "Left out" not in page.read_text()
    assert "<td>a</td><td>gradcam++</td><td>default so far</td>" in page.read_text()
    assert "<td>a</td><td>gradcam</td><td>chosen</td>" in page.read_text()


def test_a_model_is_measured_from_files(tmp_path: Path) -> None:
    """Layers are found, pictures that cannot be used are told, and too few are refused."""
    paths = files_of(spots(), tmp_path)
    (tmp_path / "broken.png").write_bytes(b"none")
    (tmp_path / "large.png").write_bytes(encoded(noise(80, 64)))
    said: list[str] = []
    config = Config.from_mapping({"resize": None, "crop": None, "mean": [0, 0, 0], "std": [1, 1, 1], "method": "gradcam"})
    given = Opened(seeing_colours(), config, Preprocess(config), 4, "sha256:00", {"method"})

    twice = tmp_path / "twice.png"
    twice.write_bytes(paths[0].read_bytes())
    further = [tmp_path / "broken.png", tmp_path / "large.png", twice]
    report = measure_model(given, [*paths, *further], say=said.append, tell=lambda _part: None)

    assert {row["method"] for row in report["rows"]} == {"gradcam"}
    assert [row["layer"] for row in report["rows"]] == ["1"]
    assert report["pictures"] == 8
    assert "broken.png is left out" in said[0]
    assert said[1] == "twice.png is left out: it is the same file as 0.png"
    assert said[2] == "large.png is left out: its input is 64 x 80, and most are 64 x 64"
    assert [each["name"] for each in report["left_out"]] == ["broken.png", "twice.png", "large.png"]
    assert [each["name"] for each in report["measured_on"]] == [path.name for path in paths]
    assert (report["weights"], report["seed"]) == ("sha256:00", 0)
    assert report["input"].startswith("resize=null crop=null")
    with pytest.raises(ToolError, match="at least 4 pictures"):
        measure_model(given, paths[:3], say=said.append, tell=lambda _part: None)


def files_of(inputs: list[Tensor], folder: Path) -> list[Path]:
    """Inputs as pictures."""
    paths = [folder / f"{place}.png" for place in range(len(inputs))]
    for path, each in zip(paths, inputs, strict=True):
        path.write_bytes(encoded((each.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)))
    return paths


@pytest.mark.parametrize(
    ("asked", "scores", "layers", "methods"),
    [
        ((), "softmax", ["2", "1", "1,2"], {*METHODS, "refinecam"}),
        (("layers",), "softmax", ["2"], set(METHODS)),
        (("method",), "softmax", ["2", "1"], {"hirescam"}),
        ((), "none", ["2", "1"], set(METHODS) - {"contrast"}),
    ],
)
def test_what_an_archive_serves_is_compared_with_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], scores: str, layers: list[str], methods: set[str]
) -> None:
    """Its own layer and method limit nothing; what the user asks for does, and values have no method that contrasts."""
    monkeypatch.setattr(fidelity, "MOSAICS", 1)
    monkeypatch.setattr(fidelity, "ROUNDS", 1)
    keys = {"resize": None, "crop": None, "mean": [0, 0, 0], "std": [1, 1, 1], "layers": ["2"], "method": "hirescam"}
    config = Config.from_mapping({**keys, "scores": scores})
    given = Opened(seeing_colours(), config, Preprocess(config), 4, "sha256:00", asked)

    report = measure_model(given, files_of(spots(4), tmp_path), say=lambda _line: None, tell=lambda _part: None)

    assert list(dict.fromkeys(row["layer"] for row in report["rows"])) == layers
    assert {row["method"] for row in report["rows"]} == methods
    assert report["own"] == {"layer": "2", "method": "hirescam"}
