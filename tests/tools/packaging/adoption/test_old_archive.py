"""Whole programs, and archives that are served already, become archives that explain."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.build import MODEL, encoded, noise, weights
from tests.support.comparison.closeness import assert_close, error_of_sum, unscaled
from tests.support.processes.fork_server import ForkServer

from camserve.tools.archive.archive import Response, Row, ask, load_service, open_archive
from camserve.tools.commands import package
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging import packager
from camserve.tools.packaging.adoption.old_archive import choose_name

LABELS = {"0": "bright", "1": "dark", "2": "grey"}
PREPROCESSING = ["--resize", "64", "--crop", "64", "--mean", "0", "0", "0", "--std", "1", "1", "1"]
PICTURE = encoded(noise(80, 64, 3))
ERROR = error_of_sum(3 * 8 * 8)

pytestmark = pytest.mark.usefixtures("forked")


def model() -> torch.nn.Module:
    """The small classifier of tests/support/build.py."""
    space: dict[str, type[torch.nn.Module]] = {}
    exec(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"), space)
    made = space["Bright"]()
    made.load_state_dict(weights())
    return made.eval()


def packaged(tmp_path: Path, *arguments: str) -> Path:
    """The archive that these flags make."""
    (tmp_path / "store").mkdir(exist_ok=True)
    words = [*arguments, "--export-path", str(tmp_path / "store")]
    return packager.package(package.parse(words), Progress())


def answers(archive: Path, picture: bytearray = PICTURE) -> tuple[Response, Response]:
    """A prediction and an explanation by the archive."""
    with open_archive(archive) as opened:
        prediction, explanation = ask(
            load_service(opened.directory), [Row({"body": picture}), Row({"body": picture}, explain=True)]
        )
    return prediction, explanation


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> dict[str, object]:
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
    with pytest.MonkeyPatch.context() as patch:
        fork_server.replace_fresh(patch)
        _, explanation = answers(packaged(folder, *files, *PREPROCESSING))
    answer: dict[str, Any] = json.loads(explanation.body)
    return answer


def same_explanation(response: Response, wanted: dict[str, Any]) -> None:
    """The same scores and map as the eager archive's; a cell of it is one convolution's sum."""
    assert response.status == 200, response.body
    answer = json.loads(response.body)
    probabilities = [[each["probability"] for each in told["classes"]] for told in (answer, wanted)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=ERROR)
    told = [each["explanations"][0] for each in (answer, wanted)]
    map_, wanted_map = (unscaled(each["heatmap"], each["range"]) for each in told)
    assert_close(map_, wanted_map, ERROR)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_a_torchscript_file_is_explained_as_the_eager_model(tmp_path: Path, eager: dict[str, object], kind: str) -> None:
    """No other library explains one at all."""
    own, file = model(), tmp_path / "bright.pt"
    vars(own)["passes"] = 0
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


@pytest.mark.numeric
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


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["image_classifier", "subclass of the stock handler", "subclass of ours"])
def test_an_archive_that_is_served_already_explains(tmp_path: Path, eager: dict[str, object], kind: str) -> None:
    """Its version, settings, labels, extra files and its handler's own steps stay."""
    own_processing = kind == "subclass of the stock handler"

    archive = packaged(
        tmp_path,
        "--trust",
        "--from-archive",
        str(old_archive(tmp_path, HANDLERS[kind])),
        *([] if own_processing else PREPROCESSING),
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
        packaged(tmp_path, "--trust", "--from-archive", str(old_archive(tmp_path, HANDLERS["takes the batch"])))


STOCK_SUBCLASS = """
from ts.torch_handler.image_classifier import ImageClassifier
class Theirs(ImageClassifier):
    def postprocess(self, data):
        return [{"said": each} for each in super().postprocess(data)]
"""
BY_NAME = """
import pathlib
from ts.torch_handler.image_classifier import ImageClassifier
from theirs import Bright
class Theirs(ImageClassifier):
    def initialize(self, context):
        folder = pathlib.Path(context.system_properties["model_dir"])
        assert Bright and (folder / "theirs.pth").stat().st_size > 1000, "the weights"
        self.word = (folder / "weights.pth").read_text() + (folder / "model.pt").read_text()
        super().initialize(context)
    def postprocess(self, data):
        return [{self.word: each} for each in super().postprocess(data)]
"""


def packed(tmp_path: Path, text: str, files: dict[str, str] | None = None, *, drop: str = "", **model: str) -> Path:
    """An archive of a team's own, as a zip file: the small classifier, their handler, and other files.

    `model` holds entries of the manifest beside or instead of the usual ones; `drop` is one that is left out.
    """
    entries = {"modelName": "theirs", "modelVersion": "3.2", "handler": "their_handler.py", "serializedFile": "theirs.pth"}
    entries |= {"modelFile": "theirs.py", **model}
    entries.pop(drop, None)
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    members: dict[str, str | bytes] = {"theirs.pth": buffer.getvalue(), "their_handler.py": text, **(files or {})}
    members["theirs.py"] = MODEL.replace("CLASSES", "3").replace("FAULT", "pass")
    members["MAR-INF/MANIFEST.json"] = json.dumps({"model": entries})
    with zipfile.ZipFile(tmp_path / "theirs.mar", "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return tmp_path / "theirs.mar"


def test_a_handler_finds_the_files_that_it_knows_by_name(tmp_path: Path) -> None:
    """The weights keep their file's name, and extra files theirs, even those that packaging gives to its own; the manifest may
    leave `.py` and the version out."""
    files = {"weights.pth": "one", "model.pt": "two", "licenses/x-1/LICENSE": "theirs", "licenses/camserve-0/LICENSE": "old"}
    old = packed(tmp_path, BY_NAME, files, drop="modelVersion", handler="their_handler")
    archive = packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING)
    with open_archive(archive) as opened:
        assert opened.version == "1.0"
        assert opened.manifest["model"]["serializedFile"] == "theirs.pth"
        assert (opened.directory / "weights.pth").read_text() == "one"
        assert (opened.directory / "licenses" / "x-1" / "LICENSE").is_file()
        assert not (opened.directory / "licenses" / "camserve-0").exists()
    with zipfile.ZipFile(archive) as new, zipfile.ZipFile(old) as before:
        assert new.read("theirs.pth") == before.read("theirs.pth")
    prediction, explanation = answers(archive)
    assert set(json.loads(prediction.body)) == {"onetwo"}
    assert json.loads(explanation.body)["explanations"]


def test_an_archive_that_explains_keeps_its_handler_when_it_is_packaged_again(tmp_path: Path) -> None:
    """That is the file that packaging wrote over theirs."""
    once = packaged(tmp_path, "--trust", "--from-archive", str(packed(tmp_path, STOCK_SUBCLASS)), *PREPROCESSING)
    twice = packaged(tmp_path, "--trust", "--from-archive", str(once), "--name", "again", "--layer", "features.0")
    prediction, explanation = answers(twice)
    assert set(json.loads(prediction.body)) == {"said"}
    assert json.loads(explanation.body)["layer"] == "features.0"


@pytest.mark.parametrize("name", ["model-config.yaml", "explained_handler.py"])
def test_a_file_that_packaging_would_replace_is_refused(tmp_path: Path, name: str) -> None:
    """It is named; and so is one of --extra-files that would replace the weights."""
    old = packed(tmp_path, STOCK_SUBCLASS, {name: "x: 1", "own.yaml": "batchSize: 2"}, configFile="own.yaml")
    with pytest.raises(ToolError, match=f"holds a file {name}.* packaging writes one of that name itself; rename it"):
        packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING)


def test_an_extra_file_does_not_replace_the_weights(tmp_path: Path) -> None:
    """The archiver would copy it last."""
    (tmp_path / "theirs.pth").write_text("other")
    old = packed(tmp_path, STOCK_SUBCLASS)
    with pytest.raises(ToolError, match=r"two files of the name theirs\.pth"):
        packaged(tmp_path, "--trust", "--from-archive", str(old), "--extra-files", str(tmp_path / "theirs.pth"), *PREPROCESSING)


def test_an_extra_file_replaces_the_old_archives(tmp_path: Path) -> None:
    """What a flag gives beats what was there."""
    (tmp_path / "word.txt").write_text("new")
    old = packed(tmp_path, STOCK_SUBCLASS, {"word.txt": "old"})
    archive = packaged(
        tmp_path, "--trust", "--from-archive", str(old), "--extra-files", str(tmp_path / "word.txt"), *PREPROCESSING
    )
    with zipfile.ZipFile(archive) as new:
        assert new.read("word.txt") == b"new"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"serializedFile": "none.pth"}, r"names the file none\.pth \(serializedFile\), and the archive does not hold it"),
        ({"modelFile": __file__}, r"modelFile names a file outside the archive: .*test_old_archive\.py"),
        ({"drop": "serializedFile"}, "holds no weights"),
        ({"drop": "handler"}, "names no handler"),
        ({"drop": "modelName"}, r"gives the model no name \(modelName\)"),
    ],
)
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    """In words, not with a KeyError."""
    with pytest.raises(ToolError, match=message):
        packaged(tmp_path, "--trust", "--from-archive", str(packed(tmp_path, STOCK_SUBCLASS, **entry)))


NEEDS_SCIPY = "import scipy.special" + STOCK_SUBCLASS


def test_what_the_requirements_name_is_seen_when_the_archive_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest still names them, so a server installs them; how that is turned on is said."""
    old = packed(tmp_path, NEEDS_SCIPY, {"needed.txt": "scipy>=1.0\niniconfig<0.1\n./a\n"}, requirementsFile="needed.txt")
    archive = packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING)
    with open_archive(archive) as opened:
        assert opened.manifest["model"]["requirementsFile"] == "needed.txt"
        assert (opened.directory / "needed.txt").read_text().startswith("scipy>=1.0")
    said = capsys.readouterr().out
    assert "install_py_dep_per_model=true" in said
    assert "Warning: the archive was tried without iniconfig<0.1 (" in said
    assert "Warning: needed.txt: nothing tells which distribution ./a is" in said


def test_what_no_requirements_name_stays_hidden(tmp_path: Path) -> None:
    """A server would not have it."""
    with pytest.raises(ToolError, match="fresh process: ModuleNotFoundError: No module named 'scipy'"):
        packaged(tmp_path, "--trust", "--from-archive", str(packed(tmp_path, NEEDS_SCIPY)), *PREPROCESSING)


def test_requirements_that_are_not_installed_are_named(tmp_path: Path) -> None:
    """With the command that installs them, before the handler fails for want of them."""
    old = packed(tmp_path, "import nosuch" + STOCK_SUBCLASS, {"r.txt": "nosuch>=2\niniconfig\n"}, requirementsFile="r.txt")
    with pytest.raises(ToolError, match=r"r\.txt asks for nosuch>=2, .* not installed here: pip install 'nosuch>=2'"):
        packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING)


@pytest.mark.parametrize(("old", "new"), [("resnet.pth", "resnet.pth"), ("net.pt", "net.pt"), ("net.safetensors", "net.pth")])
def test_weights_keep_their_name_where_torch_would_read_them_by_it(old: str, new: str) -> None:
    """What packaging writes is no file of safetensors; torch 2.15 goes by the ending."""
    assert choose_name(Path("folder") / old) == new


def test_a_flag_names_the_requirements(tmp_path: Path) -> None:
    """They beat an old archive's, whose file stays beside them; what they name is not bundled."""
    (tmp_path / "net.py").write_text("import sortedcontainers\n" + MODEL.replace("CLASSES", "3").replace("FAULT", "pass"))
    torch.save(weights(), tmp_path / "net.pth")
    (tmp_path / "mine.txt").write_text("sortedcontainers\n")
    files = ["--model-file", str(tmp_path / "net.py"), "--weights", str(tmp_path / "net.pth")]
    wanted = ["--requirements", str(tmp_path / "mine.txt"), *PREPROCESSING]
    new = packaged(tmp_path, *files, *wanted)
    old = packed(tmp_path, STOCK_SUBCLASS, {"r.txt": "nosuch\n"}, requirementsFile="r.txt")
    for archive in (new, packaged(tmp_path, "--trust", "--from-archive", str(old), *wanted)):
        with open_archive(archive) as opened:
            assert opened.manifest["model"]["requirementsFile"] == "mine.txt"
            assert (opened.directory / "mine.txt").read_text() == "sortedcontainers\n"
            assert not (opened.directory / "sortedcontainers").exists()
            assert (opened.directory / "r.txt").exists() is (archive != new)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (None, "r.txt", "--requirements: there is no file"),
        ("nosuch\n", "r.txt", "asks for nosuch, .*: pip install 'nosuch'"),
        ("numpy\n", "index_to_name.json", "packaging writes index_to_name.json itself"),
    ],
)
def test_requirements_that_cannot_be_taken_are_refused(tmp_path: Path, text: str | None, name: str, words: str) -> None:
    """Before the model's file fails for want of them."""
    if text:
        (tmp_path / name).write_text(text)
    (tmp_path / "net.py").write_text("import nosuch\n")
    torch.save(weights(), tmp_path / "net.pth")
    files = ["--model-file", str(tmp_path / "net.py"), "--weights", str(tmp_path / "net.pth")]
    with pytest.raises(ToolError, match=words):
        packaged(tmp_path, *files, "--requirements", str(tmp_path / name))


LATE = """
import torch
from ts.torch_handler.image_classifier import ImageClassifier
class Theirs(ImageClassifier):
    def initialize(self, context):
        super().initialize(context)
        LATE
"""
OWN_ANSWER = "    def postprocess(self, data):\n        return [{'said': self.mapping['0']} for _ in data]\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("self.model = torch.nn.Sequential(self.model, torch.nn.Softmax(1))", "self.model .* _load_pickled_model"),
        ("self.mapping = {'0': 'late'}", "self.mapping .* index_to_name.json"),
        ("self.set_max_result_classes(2)", "self.topk .* before super"),
    ],
)
def test_what_a_handler_changes_too_late_is_refused(tmp_path: Path, change: str, words: str) -> None:
    """The prepared model would go on answering, and nobody would hear of it."""
    old = packed(tmp_path, LATE.replace("LATE", change))
    with pytest.raises(ToolError, match=f"fresh process: ConfigError: ExplainedTheirs changes {words}"):
        packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING)


def test_a_handler_with_an_answer_of_its_own_may_name_classes_as_it_likes(tmp_path: Path) -> None:
    """Only its postprocess reads those names."""
    old = packed(tmp_path, LATE.replace("LATE", "self.mapping = {'0': 'late'}") + OWN_ANSWER)
    prediction, explanation = answers(packaged(tmp_path, "--trust", "--from-archive", str(old), *PREPROCESSING))
    assert json.loads(prediction.body) == {"said": "late"}
    assert explanation.status == 200


def test_whose_handler_it_is_and_how_it_prepares_pictures_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Theirs, not the file that puts it over camserve's."""
    old = packed(tmp_path, HANDLERS["subclass of the stock handler"] or "", {"words.py": 'WORD = "said"\n'})
    packaged(tmp_path, "--trust", "--from-archive", str(old))
    lines = capsys.readouterr().out.splitlines()
    assert "Handler: their_handler.py's class Theirs, over camserve's" in lines
    assert "Pictures: as image_processing of their_handler.py's class Theirs makes them, 64x64" in lines


def test_an_archive_of_the_other_format_is_taken(tmp_path: Path) -> None:
    """`--archive-format tgz`: a tar file that holds a folder of the model's name."""
    old_archive(tmp_path, STOCK_SUBCLASS)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "theirs", "--version", "3.2"]
    command += ["--model-file", "theirs.py", "--serialized-file", "theirs.pth", "--config-file", "config.yaml"]
    command += ["--handler", "their_handler.py", "--archive-format", "tgz", "--export-path", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    archive = packaged(tmp_path, "--trust", "--from-archive", str(tmp_path / "theirs.tar.gz"), *PREPROCESSING)
    with open_archive(archive) as opened:
        assert (opened.name, opened.version, opened.config["batchSize"]) == ("theirs", "3.2", 5)
    assert answers(archive)[1].status == 200
