"""Whole programs, and archives that are served already, become archives that explain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.build import MODEL, encoded, noise, weights

from camserve.tools import package
from camserve.tools.archive import Response, Row, ask, load_service, open_archive
from camserve.tools.console import Progress, ToolError

LABELS = {"0": "bright", "1": "dark", "2": "grey"}
PREPROCESSING = ["--resize", "64", "--crop", "64", "--mean", "0", "0", "0", "--std", "1", "1", "1"]
PICTURE = encoded(noise(80, 64, 3))


def model() -> torch.nn.Module:
    """The small classifier of tests/build.py."""
    space: dict[str, type[torch.nn.Module]] = {}
    exec(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"), space)
    made = space["Bright"]()
    made.load_state_dict(weights())
    return made.eval()


def packaged(tmp_path: Path, *arguments: str) -> Path:
    """The archive that these flags make."""
    (tmp_path / "store").mkdir(exist_ok=True)
    words = [*arguments, "--export-path", str(tmp_path / "store")]
    return package.package(package.parser().parse_args(words), Progress())


def answers(archive: Path, picture: bytearray = PICTURE) -> tuple[Response, Response]:
    """A prediction and an explanation by the archive."""
    with open_archive(archive) as opened:
        prediction, explanation = ask(
            load_service(opened.directory), [Row({"body": picture}), Row({"body": picture}, explain=True)]
        )
    return prediction, explanation


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the eager archive answers."""
    folder = tmp_path_factory.mktemp("eager")
    (folder / "bright.py").write_text(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"))
    torch.save(weights(), folder / "w.pth")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    files = [
        "--model-file",
        str(folder / "bright.py"),
        "--weights",
        str(folder / "w.pth"),
        "--labels",
        str(folder / "labels.json"),
    ]
    _, explanation = answers(packaged(folder, *files, *PREPROCESSING))
    answer: dict[str, object] = json.loads(explanation.body)
    return answer


def same_explanation(response: Response, wanted: dict[str, object]) -> None:
    """The same scores and heatmap as the eager archive's."""
    assert response.status == 200, response.body
    answer = json.loads(response.body)
    probabilities = [[each["probability"] for each in told["classes"]] for told in (answer, wanted)]  # type: ignore[index, attr-defined]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)
    heatmaps = [np.array(told["explanations"][0]["heatmap"]) for told in (answer, wanted)]  # type: ignore[index]
    np.testing.assert_allclose(*heatmaps, atol=1e-5)


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_a_torchscript_file_is_explained_as_the_eager_model(tmp_path: Path, eager: dict[str, object], kind: str) -> None:
    """No other library explains one at all."""
    own, file = model(), tmp_path / "bright.pt"
    own.passes = 0
    if kind == "scripted":
        del own.passes
        source = (
            MODEL.replace("CLASSES", "3")
            .replace("FAULT", "pass")
            .replace("self.passes += 1", "pass")
            .replace("self.passes = 0", "pass")
        )
        (tmp_path / "plain.py").write_text(source)
        sys.path.insert(0, str(tmp_path))
        try:
            import plain  # type: ignore[import-not-found]
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("plain", None)
        own = plain.Bright().eval()
        own.load_state_dict(weights())
        torch.jit.script(own).save(str(file))
    else:
        torch.jit.trace(own, torch.zeros(2, 3, 64, 64)).save(str(file))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))

    archive = packaged(tmp_path, "--torchscript", str(file), "--labels", str(tmp_path / "labels.json"), *PREPROCESSING)

    same_explanation(answers(archive)[1], eager)


def test_an_exported_program_is_explained_as_the_eager_model(tmp_path: Path, eager: dict[str, object]) -> None:
    """Exported for any number of pictures."""
    file = tmp_path / "bright.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))

    archive = packaged(tmp_path, "--exported", str(file), "--labels", str(tmp_path / "labels.json"), *PREPROCESSING)

    same_explanation(answers(archive)[1], eager)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """With what it could be."""
    torch.save(weights(), tmp_path / "w.pt")

    with pytest.raises(ToolError, match="neither TorchScript"):
        packaged(tmp_path, "--torchscript", str(tmp_path / "w.pt"))


HANDLERS = {
    "image_classifier": None,
    "subclass of the stock handler": """
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier
from words import WORD
class Theirs(ImageClassifier):
    image_processing = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
    def postprocess(self, data):
        return [{WORD: each} for each in super().postprocess(data)]
""",
    "subclass of ours": """
from gradcam_handler import GradCAMHandler
from words import WORD
class Theirs(GradCAMHandler):
    def postprocess(self, data):
        return [{WORD: each} for each in super().postprocess(data)]
""",
    "takes the batch": """
from ts.torch_handler.image_classifier import ImageClassifier
class Theirs(ImageClassifier):
    def handle(self, data, context):
        return [b"" for _ in data]
""",
}


def old_archive(tmp_path: Path, handler: str | None) -> Path:
    """An archive as torch-model-archiver makes it of a team's own files."""
    (tmp_path / "theirs.py").write_text(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"))
    torch.save(weights(), tmp_path / "theirs.pth")
    (tmp_path / "index_to_name.json").write_text(json.dumps(LABELS))
    (tmp_path / "words.py").write_text('WORD = "said"\n')
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"minWorkers": 2, "maxWorkers": 3, "batchSize": 5, "maxBatchDelay": 7}))
    if handler:
        (tmp_path / "their_handler.py").write_text(handler)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "theirs", "--version", "3.2"]
    command += ["--model-file", "theirs.py", "--serialized-file", "theirs.pth", "--config-file", "config.yaml"]
    command += ["--handler", "their_handler.py" if handler else "image_classifier"]
    command += ["--extra-files", "index_to_name.json,words.py", "--export-path", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "theirs.mar"


@pytest.mark.parametrize("kind", ["image_classifier", "subclass of the stock handler", "subclass of ours"])
def test_an_archive_that_is_served_already_explains(tmp_path: Path, eager: dict[str, object], kind: str) -> None:
    """Its version, settings, labels, extra files and its handler's own steps stay."""
    own_processing = kind == "subclass of the stock handler"

    archive = packaged(
        tmp_path, "--from-archive", str(old_archive(tmp_path, HANDLERS[kind])), *([] if own_processing else PREPROCESSING)
    )

    with open_archive(archive) as opened:
        assert (opened.name, opened.version) == ("theirs", "3.2")
        assert [opened.config[key] for key in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")] == [2, 3, 5, 7]
        assert (opened.directory / "words.py").is_file()
        assert json.loads((opened.directory / "index_to_name.json").read_text()) == LABELS
    prediction, explanation = answers(archive)
    same_explanation(explanation, eager)
    answer = json.loads(prediction.body)
    assert set(answer["said"] if kind != "image_classifier" else answer) == set(LABELS.values())


def test_a_handler_that_takes_the_batch_is_refused(tmp_path: Path) -> None:
    """It would answer explanations with its own words."""
    with pytest.raises(ToolError, match=r"has a handle\(\) of its own"):
        packaged(tmp_path, "--from-archive", str(old_archive(tmp_path, HANDLERS["takes the batch"])))
