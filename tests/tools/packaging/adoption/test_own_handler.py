"""`package --handler FILE`: a handler of the user's beside a model of her own, without an archive before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.support.build import MODEL, noise, weights
from tests.support.comparison.closeness import assert_close, error_of_sum, unscaled
from tests.support.comparison.oracle import gradcam_plus_plus
from tests.tools.packaging.adoption.test_old_archive import HANDLERS, LABELS, PREPROCESSING, answers, model, packaged
from torchvision import transforms

from camserve.tools.archive.archive import open_archive
from camserve.tools.commands import package
from camserve.tools.console import ToolError
from camserve.tools.packaging.adoption.own_handler import take_handler
from camserve.tools.packaging.models.source import ModelSource

ERROR = error_of_sum(3 * 8 * 8)

pytestmark = pytest.mark.usefixtures("forked")


def files(tmp_path: Path, handler: str) -> list[str]:
    """The flags of a model, its labels, and a handler with a module that it imports."""
    (tmp_path / "bright.py").write_text(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"))
    torch.save(weights(), tmp_path / "w.pth")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "words.py").write_text('WORD = "said"\n')
    (tmp_path / "their_handler.py").write_text(handler)
    given = {"model-file": "bright.py", "weights": "w.pth", "labels": "labels.json", "extra-files": "words.py"}
    flags = [word for flag, name in given.items() for word in (f"--{flag}", str(tmp_path / name))]
    return [*flags, "--handler", str(tmp_path / "their_handler.py")]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["subclass of the stock handler", "subclass of ours"])
def test_a_handler_of_ones_own_keeps_its_steps_and_is_explained(tmp_path: Path, kind: str) -> None:
    """Predictions are of the pictures that it prepares, in its words; the heatmap is the formula's in float64."""
    prepares = kind == "subclass of the stock handler"
    archive = packaged(tmp_path, *files(tmp_path, HANDLERS[kind] or ""), *([] if prepares else PREPROCESSING))

    tensor = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])(
        Image.fromarray(noise(80, 64, 3))
    )[None].double()
    net = model().double()
    activations = net.get_submodule("features")(tensor).detach().requires_grad_()
    scores = net.get_submodule("fc")(activations.mean((2, 3)))
    top = int(scores.argmax())
    (gradients,) = torch.autograd.grad(scores[0, top], activations)
    prediction, explanation = answers(archive)
    said = json.loads(prediction.body)["said"]
    wanted = torch.softmax(scores[0], 0).tolist()
    assert [said[LABELS[str(index)]] for index in range(3)] == pytest.approx(wanted, abs=ERROR)
    (found,) = json.loads(explanation.body)["explanations"]
    assert found["target"] == top
    map_ = gradcam_plus_plus(activations[0].detach().numpy(), gradients[0].numpy())
    assert_close(unscaled(found["heatmap"], found["range"]), map_, ERROR)


def test_whose_handler_it_is_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file lies in the archive, beside camserve's handler, and the manifest names what makes one of both."""
    archive = packaged(tmp_path, *files(tmp_path, HANDLERS["subclass of the stock handler"] or ""))
    lines = capsys.readouterr().out.splitlines()
    assert "Handler: their_handler.py's class Theirs, over camserve's" in lines
    assert "Pictures: as image_processing of their_handler.py's class Theirs makes them, 64x64" in lines
    with open_archive(archive) as opened:
        assert opened.manifest["model"]["handler"] == "explained_handler.py"
        assert {"their_handler.py", "words.py", "gradcam_handler.py"} <= {path.name for path in opened.directory.iterdir()}


def test_a_handler_that_prepares_pictures_does_so_in_place_of_the_model(tmp_path: Path) -> None:
    """A library's own resize, mean and so on are left out; what else it says of the model stays."""
    source = ModelSource(None, model(), {"resize": 248, "mean": [0.5], "scores": "sigmoid"}, unprepared="it cannot be told")
    (tmp_path / "stage").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "stage" / "words.py").write_text('WORD = "said"\n')
    for kind, kept in (("subclass of the stock handler", {"scores"}), ("subclass of ours", {"resize", "mean", "scores"})):
        file = tmp_path / f"{kind.split()[-1]}.py"
        file.write_text(HANDLERS[kind] or "")
        taken, handler = take_handler(file, source, tmp_path / "stage", tmp_path / "work")
        assert set(taken.preprocessing) == kept
        assert bool(taken.unprepared) == (handler.processing is None) == (len(kept) == 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py", "there is no file .*absent.py; without --handler camserve's answers"),
        ("words.txt", r"expected a Python file, NAME\.py, got words\.txt"),
        ("gradcam_handler.py", "it would hide the module gradcam_handler"),
        ("json.py", "it would hide the module json"),
        ("my-handler.py", "is not a Python name"),
        ("words.py", "another file of the archive is named words.py"),
    ],
)
def test_a_handler_that_cannot_be_taken_is_refused(tmp_path: Path, name: str, words: str) -> None:
    """Before the model is run, with what to do."""
    flags = files(tmp_path, HANDLERS["subclass of ours"] or "")
    if name != "absent.py":
        (tmp_path / name).write_text("")
    with pytest.raises(ToolError, match=words):
        packaged(tmp_path, *flags[:-1], str(tmp_path / name))


def test_an_archive_brings_its_own_handler(tmp_path: Path) -> None:
    """So `--from-archive` and `--handler` do not go together."""
    with pytest.raises(ToolError, match="the archive of --from-archive brings its own"):
        package.parse(["--from-archive", str(tmp_path / "a.mar"), "--handler", str(tmp_path / "h.py")])
