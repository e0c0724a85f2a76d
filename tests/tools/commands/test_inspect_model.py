"""What can be explained here: the table of layers, the rule's choice with its reason, and the contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tests.support import build
from tests.support.models import architectures, nets
from torch import nn

from camserve.capture import synthesize_pictures
from camserve.explain.methods import METHODS
from camserve.tools.commands import inspect_model
from camserve.tools.console import Progress
from camserve.tools.packaging.inspected import InspectedModel, open_inspected
from camserve.tools.reports.inspection.contact_sheet import CELL, GAP, HEAD, NAMES

SMALL = ["--resize", "64", "--crop", "64", "--mean", "0", "0", "0", "--std", "1", "1", "1", "--rounds", "1"]
SETTLED = """
import torch
from torch import nn


class Settled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(self.stem(x)))).mean((2, 3)))
"""
"""Two convolutions with batch normalisations, which a worker folds."""


def settled() -> nn.Module:
    """That model; what its second convolution gives is positive, and what is normalised of it is not."""
    space: dict[str, Any] = {}
    exec(SETTLED, space)
    torch.manual_seed(0)
    model: nn.Module = space["Settled"]().eval()
    with torch.no_grad():
        model.get_parameter("conv.weight").abs_()
    architectures.settle(model, synthesize_pictures((64, 64)))
    return model


def files(folder: Path) -> list[str]:
    """The flags for that model from its files."""
    (folder / "settled.py").write_text(SETTLED)
    torch.save(settled().state_dict(), folder / "settled.pth")
    return ["--model-file", str(folder / "settled.py"), "--weights", str(folder / "settled.pth")]


def of_archive(folder: Path, **options: Any) -> Path:
    """An archive of it."""
    directory = build.archive(folder / "own", {**build.PLAIN, "layers": ["stem"]}, state=settled().state_dict(), **options)
    (directory / "model.py").write_text(SETTLED)
    return directory


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[list[list[str]], str]:
    """The table's rows without what are numbers (channels, costs), and all that was printed."""
    assert inspect_model.main(["--trust", *arguments]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if "autograd" in line or "closed form" in line]
    return [[cell for cell in row if not cell.replace(".", "").isdigit()] for row in rows], text


@contextmanager
def inspected(*arguments: str) -> Iterator[InspectedModel]:
    """What these flags name."""
    options = inspect_model.parse(arguments)
    with open_inspected(options.model, options.keys, Progress(), True) as found:
        yield found


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The small classifier's archive, with labels that attack whoever shows them."""
    return build.mar(tmp_path, "small", labels=build.HOSTILE)


def test_an_archive_is_listed_and_drawn(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers with shape, stride, sign and how gradients come; the rule's choice; a row of heatmaps for each size of map."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(build.encoded(build.square(96, 64, 40, 20, 16)))
    sheet = tmp_path / "new" / "sheet.png"
    assert inspect_model.main(["--trust", str(archive), "--image", str(picture), "--out", str(sheet), "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("features")}
    assert rows["features.0"][1:7] == ["Conv2d", "6", "x", "8x8", "8x8", "yes"]
    assert rows["features"][1:7] == ["Sequential", "6", "x", "8x8", "8x8", "no"]
    assert "closed form" in said
    assert said.count("the rule's choice") == 1
    assert "The rule picks features: the last of 3 layers with a map" in said
    drawn = np.asarray(cv2.imread(str(sheet)))
    assert drawn.shape == (CELL + 2 * GAP + HEAD + CELL + GAP, NAMES + len(METHODS) * (CELL + GAP), 3)
    lower = drawn[CELL + 2 * GAP + HEAD :]
    cells = [lower[:CELL, NAMES + at * (CELL + GAP) :][:, :CELL] for at in range(len(METHODS))]
    assert all(cell.std() > 1 for cell in cells)
    assert not np.array_equal(cells[0], cells[list(METHODS).index("contrast")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "give one of ARCHIVE, --torchvision ARCH, --timm ARCH, --transformers FOLDER, --model-file FILE, --torchscript FILE",
        ),
        (["a.mar", "--demo"], "give one of ARCHIVE"),
        (["--torchscript", "a.pt", "--exported", "b.pt2"], "give one of ARCHIVE"),
        (["--demo", "--weights", "w.pth"], "--weights goes with --torchvision, --timm or --model-file"),
        (["--torchscript", "none.pt"], "no file none.pt"),
        (["--demo", "--labels", "none.json"], "--labels: there is no file none.json"),
        (["--demo", "--opacity", "2"], "explain: opacity: expected a number from 0 to 1, got 2"),
        (["--torchvision", "resnet51"], "torchvision has no classifier resnet51; the nearest are"),
        (["--model-file", "net.py"], "--model-file needs --weights FILE"),
        (["none.mar"], "none.mar"),
    ],
)
def test_what_cannot_be_inspected_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and a status."""
    assert inspect_model.main(["--trust", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_picture_that_is_none(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag is named with what is wrong."""
    (tmp_path / "text.png").write_text("hello")
    assert inspect_model.main(["--trust", str(archive), "--image", str(tmp_path / "text.png"), "--rounds", "1"]) == 1
    assert "--image: " in capsys.readouterr().err


def test_an_archives_model_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not as a worker folds and rearranges it: table and sheet are those of the model's own files, by value."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(build.encoded(build.noise(80, 64)))
    sheets = [tmp_path / "archive.png", tmp_path / "files.png"]
    wanted = ["--image", str(picture), "--every-layer", "--rounds", "1", "--out"]
    shown, text = said(capsys, [str(of_archive(tmp_path)), *wanted, str(sheets[0])])
    alone, _ = said(capsys, [*files(tmp_path), *SMALL, *wanted, str(sheets[1])])
    assert shown == alone
    signs = {row[0]: row[5] for row in shown}
    assert [row[:2] for row in shown if row[0] in ("norm", "stem.1")] == [["stem.1", "BatchNorm2d"], ["norm", "BatchNorm2d"]]
    assert (signs["conv"], signs["norm"]) == ("no", "yes")
    first, second = (np.asarray(cv2.imread(str(sheet))) for sheet in sheets)
    assert np.array_equal(first, second)
    assert "one picture in one thread, processor time, in float32, both by the model as it is; a worker also folds" in text


@pytest.mark.parametrize("compiled", [False, True])
def test_an_archives_weights_are_the_files(tmp_path: Path, compiled: bool) -> None:
    """Whatever TorchServe makes of the model for serving."""
    settings = {"pt2": {"compile": {"enable": True, "backend": "eager"}}} if compiled else {}
    with inspected(str(of_archive(tmp_path, settings=settings))) as model:
        own = settled().state_dict()
        assert {name: bool(torch.equal(own[name], value)) for name, value in model.model.state_dict().items()} == dict.fromkeys(
            own, True
        )
        assert "_conv_forward" not in vars(model.model.conv)


def test_an_archives_model_may_import_what_lies_beside_it_when_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a worker, whose path begins with the archive's folder."""
    directory = of_archive(tmp_path)
    text = SETTLED.replace("    def forward(self, x):\n", "    def forward(self, x):\n        import lying_beside\n")
    (directory / "model.py").write_text(text)
    (directory / "lying_beside.py").write_text("")
    rows, _ = said(capsys, [str(directory), "--rounds", "1"])
    assert "conv" in {row[0] for row in rows}


def test_flags_beat_an_archives_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here pictures of half the size, and a layer that is listed because it is asked for."""
    rows, _ = said(
        capsys,
        [str(of_archive(tmp_path)), "--resize", "32", "--crop", "32", "--depth", "1", "--layer", "stem.1", "--rounds", "1"],
    )
    assert {row[0]: row[3] for row in rows} == {"stem.1": "4x4", "stem": "4x4", "conv": "4x4", "norm": "4x4"}


@pytest.mark.parametrize("kind", ["trace", "exported"])
def test_whole_programs_are_listed(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the flags that packaging takes them with."""
    file = tmp_path / "settled.bin"
    file.write_bytes(nets.as_file(settled(), kind, synthesize_pictures((64, 64))))
    rows, text = said(capsys, ["--exported" if kind == "exported" else "--torchscript", str(file), *SMALL])
    assert {"stem", "conv", "norm"} <= {row[0] for row in rows}
    assert "The rule picks norm: the last of" in text


def test_labels_name_the_classes(tmp_path: Path) -> None:
    """Those of a file, for any model and over an archive's own."""
    (tmp_path / "labels.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    labels = ["--labels", str(tmp_path / "labels.json")]
    with inspected(*files(tmp_path), *labels) as model:
        assert model.labels == {"0": "a", "1": "b", "2": "c"}
    with inspected(str(of_archive(tmp_path, labels={"0": "x", "1": "y", "2": "z"})), *labels) as model:
        assert model.labels == {"0": "a", "1": "b", "2": "c"}


OWN = """
import torch
from ts.torch_handler.image_classifier import ImageClassifier
class Theirs(ImageClassifier):
    image_processing = staticmethod(lambda picture: torch.zeros(3, 40, 48))
"""


@pytest.mark.parametrize(("handler", "size"), [("stock", (64, 64)), (OWN, (40, 48))])
def test_an_archive_that_does_not_explain_yet_is_listed(
    tmp_path: Path, handler: str, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As packaging would take it from there: with the preprocessing of a handler of its own."""
    own = {"layers": ["features"]} if handler == OWN else build.PLAIN
    old = build.archive(tmp_path / "old", own, handler=handler, labels=build.HOSTILE)
    with inspected(str(old)) as model:
        assert (model.size, model.labels) == (size, build.HOSTILE)
    rows, _ = said(capsys, [str(old), "--rounds", "1"])
    assert "features" in {row[0] for row in rows}


FLAT = """
from torch import nn
class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3 * 16, 3)
    def forward(self, x):
        self.pool(self.conv(x))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
"""


def test_a_model_without_a_layer_to_explain_is_listed_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packaging refuses it, and here is why: a line for each layer."""
    (tmp_path / "flat.py").write_text(FLAT)
    space: dict[str, Any] = {}
    exec(FLAT, space)
    torch.save(space["Flat"]().state_dict(), tmp_path / "flat.pth")
    assert inspect_model.main(["--model-file", str(tmp_path / "flat.py"), "--weights", str(tmp_path / "flat.pth"), *SMALL]) == 1
    told = capsys.readouterr()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in told.out.splitlines() if line.strip()}
    assert rows["conv"] == "Conv2d 2x4x8x8 the prediction does not depend on it"
    assert rows["pool"] == "AdaptiveAvgPool2d 2x4x1x1 its map has a single cell"
    assert rows["fc"] == "Linear 2x3 it has no spatial map"
    assert told.err.startswith("error: this model has no layer with a spatial map that its prediction depends on")


ODD = """
from torch import nn
from odd_errors import OddError
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
    def forward(self, x):
        raise OddError("line one\\nline two")
"""


@pytest.mark.parametrize("debug", [False, True])
def test_an_unforeseen_error_is_one_line(
    tmp_path: Path, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its traceback is for who asks for it."""
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "odd_errors.py").write_text("class OddError(Exception): pass\n")
    torch.save(nn.ModuleDict({"conv": nn.Conv2d(3, 4, 8, 8)}).state_dict(), tmp_path / "odd.pth")
    monkeypatch.setenv("CAMSERVE_DEBUG", "1" if debug else "")
    assert inspect_model.main(["--model-file", str(tmp_path / "odd.py"), "--weights", str(tmp_path / "odd.pth"), *SMALL]) == 1
    told = capsys.readouterr().err
    lines = told.strip().splitlines()
    if debug:
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "error: OddError: line one line two"
    else:
        assert lines == ["error: OddError: line one line two (CAMSERVE_DEBUG=1 shows where)"]
