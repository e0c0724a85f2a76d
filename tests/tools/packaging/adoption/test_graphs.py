"""ONNX graphs, by themselves and in archives that TorchServe serves already, become archives that explain."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from tests.support.build import noise
from tests.support.models import graphs, nets
from tests.support.models.tiny import package_model
from tests.support.processes.waiting import HANG

from camserve import Model
from camserve.core.errors import ConfigError
from camserve.tools.archive.archive import Row, ask, handler_of, load_service, open_archive
from camserve.tools.commands.inspect_model import main as inspect_model
from camserve.tools.commands.serve import Server
from camserve.tools.console import ToolError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("forked")]

ROOT = Path(__file__).resolve().parents[4]
SIDES = ["--resize", "32", "--crop", "32"]
LABELS = {str(index): f"class of {index}" for index in range(nets.CLASSES)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the net `deep`, whose head needs autograd."""
    return graphs.write_graph(nets.net("deep"), tmp_path_factory.mktemp("graph") / "deep.onnx", nets.pictures(2))


@pytest.fixture(scope="module")
def of_any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for pictures of any size."""
    axes: Any = {"dynamic_axes": {"pictures": {0: "n", 2: "h", 3: "w"}}}
    return graphs.write_graph(nets.net("deep"), tmp_path_factory.mktemp("any") / "deep.onnx", nets.pictures(2), **axes)


def packaged(folder: Path, *arguments: str) -> tuple[Path, str]:
    """The archive that these flags make, and what was said."""
    return package_model([*arguments, *SIDES, "--export-path", str(folder)])


def stock(graph: Path, folder: Path, more: Mapping[str, bytes] | None = None, handler: str = "") -> Path:
    """An archive as a team has it that serves a graph, with TorchServe's own handler or with the code of another."""
    model = {"modelName": "theirs", "modelVersion": "2.0", "handler": "image_classifier", "serializedFile": graph.name}
    files = dict(more or {})
    if handler:
        model["handler"], files["their_handler.py"] = "their_handler.py", handler.encode()
    with zipfile.ZipFile(folder / "theirs.mar", "w") as made:
        made.writestr(graph.name, graph.read_bytes())
        made.writestr("index_to_name.json", json.dumps(LABELS))
        made.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        for name, data in files.items():
            made.writestr(name, data)
    return folder / "theirs.mar"


def answer(archive: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prediction and an explanation by the archive's own handler, as TorchServe's worker calls it."""
    picture = noise(80, 64, 3)
    file = archive.parent / "picture.png"
    Image.fromarray(picture).save(file)
    body = bytearray(file.read_bytes())
    with open_archive(archive) as opened:
        service = load_service(opened.directory)
        assert handler_of(service).face.metadata["kind"] == "onnx"
        told = ask(service, [Row({"body": body}), Row({"body": body}, explain=True)])
    assert [each.status for each in told] == [200, 200]
    prediction, explanation = (json.loads(each.body) for each in told)
    return prediction, explanation


def same(explanation: dict[str, Any], model: Model) -> None:
    """The explanation is that of the model itself."""
    (wanted,) = model.explain([Image.fromarray(noise(80, 64, 3))])
    (found,) = explanation["explanations"]
    assert found["target"] == wanted.targets[0].target
    assert found["probability"] == pytest.approx(wanted.targets[0].probability, abs=1e-5)
    assert np.abs(np.array(found["heatmap"]) - wanted.targets[0].heatmap).max() <= 1e-4


def test_a_graph_is_packaged_and_explained_as_its_model(graph: Path, tmp_path: Path) -> None:
    """The archive holds the graph as it is; what runs it is recorded and shown."""
    archive, told = packaged(tmp_path, "--onnx", str(graph))
    assert "requirements.txt names onnx and onnxruntime, " in told
    assert "pip install 'camserve[onnx]'" in told
    assert "Runtime: onnxruntime 1." in told
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("deep.onnx") == graph.read_bytes()
        assert b"runtime: onnxruntime" in opened.read("model-config.yaml")
    prediction, explanation = answer(archive)
    same(explanation, Model(nets.net("deep"), resize=32, crop=32, channels_last=False))
    assert prediction == explanation["predictions"]
    opened_here = Model.from_archive(archive)
    assert opened_here.metadata["kind"] == "onnx"
    assert opened_here.metadata["runtime"]["name"] == "onnxruntime"
    assert opened_here.metadata["weights"].startswith("sha256:")


def test_an_archive_that_torchserve_serves_already(of_any_size: Path, tmp_path: Path) -> None:
    """It explains by itself, and packaged again; nothing of it is code, so no --trust is needed."""
    old = stock(of_any_size, tmp_path)
    assert Model.from_archive(old).served.labels[1] == "class of 1"
    archive, _ = packaged(tmp_path, "--from-archive", str(old), "--name", "ours")
    _, explanation = answer(archive)
    same(explanation, Model(nets.net("deep"), resize=32, crop=32, channels_last=False))
    assert explanation["explanations"][0]["label"] in LABELS.values()
    assert (explanation["model"], explanation["version"]) == ("ours", "2.0")


def test_weights_beside_the_graph_become_part_of_it(of_any_size: Path, tmp_path: Path) -> None:
    """Of a file, and of an archive of others, which explains as it is too."""
    (tmp_path / "split").mkdir()
    path = tmp_path / "split" / "deep.onnx"
    onnx.save_model(onnx.load(of_any_size), path, save_as_external_data=True, location="deep.data", size_threshold=0)
    archive, told = packaged(tmp_path, "--onnx", str(path))
    assert "deep.onnx: its weights, which lie in files beside it, were put into it" in told
    same(answer(archive)[1], Model(nets.net("deep"), resize=32, crop=32, channels_last=False))
    old = stock(path, tmp_path, {"deep.data": (tmp_path / "split" / "deep.data").read_bytes()})
    assert Model.from_archive(old).metadata["kind"] == "onnx"


def test_a_size_that_the_graph_does_not_take(graph: Path, tmp_path: Path) -> None:
    """The flags that make it are named; so is a runtime that cannot run it."""
    with pytest.raises(ConfigError, match=r"the graph was written for 32x32, and given 224x224; .*: add --resize 32 --crop 32$"):
        package_model(["--onnx", str(graph), "--export-path", str(tmp_path)])
    with pytest.raises(ToolError, match=r"--runtime compile cannot be had: .*--runtime onnxruntime does without"):
        packaged(tmp_path, "--onnx", str(graph), "--runtime", "compile")
    with pytest.raises(ToolError, match=r"--runtime tensorrt cannot be had: tensorrt: .*it takes a GPU"):
        packaged(tmp_path, "--onnx", str(graph), "--runtime", "tensorrt")
    assert not list(tmp_path.glob("*.mar"))


def test_what_can_be_explained_is_listed(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the names of the tensors."""
    assert inspect_model(["--onnx", str(graph), *SIDES, "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "/relu/Relu_output_0" in told
    assert "The rule picks /relu/Relu_output_0" in told


OWN_INFERENCE = """
import torch
from ts.torch_handler.image_classifier import ImageClassifier
class Theirs(ImageClassifier):
    def inference(self, data, *args, **kwargs):
        (scores,) = self.model.run(None, {"pictures": data.numpy()})
        return RESULT
    def postprocess(self, data):
        return [{"said": each} for each in super().postprocess(data)]
"""


def test_a_handler_that_runs_the_session_itself(of_any_size: Path, tmp_path: Path) -> None:
    """Without it TorchServe cannot serve a graph: it is taken where a trial shows that it gives the graph's own scores."""
    code = OWN_INFERENCE.replace("RESULT", "torch.from_numpy(scores)")
    old = stock(of_any_size, tmp_path, handler=code)
    archive, told = packaged(tmp_path, "--from-archive", str(old), "--trust", "--name", "ours")
    assert "Theirs.inference() gives the graph's own scores, by trial; camserve runs the graph itself" in told
    prediction, explanation = answer(archive)
    assert set(prediction["said"]) == set(LABELS.values())
    same(explanation, Model(nets.net("deep"), resize=32, crop=32, channels_last=False))


@pytest.mark.parametrize("result", ["torch.from_numpy(2 * scores)", "[scores]", "1 / 0"])
def test_a_handler_that_makes_something_else_of_the_scores(of_any_size: Path, tmp_path: Path, result: str) -> None:
    """It would never be called, and its answers would be others."""
    old = stock(of_any_size, tmp_path, handler=OWN_INFERENCE.replace("RESULT", result))
    with pytest.raises(ToolError, match=r"Theirs in their_handler.py has inference\(\) of its own, which would never be called"):
        packaged(tmp_path, "--from-archive", str(old), "--trust", "--name", "ours")


@pytest.mark.live
def test_a_graph_behind_torchserve(graph: Path, tmp_path: Path) -> None:
    """Predictions, explanations of all kinds, and the metadata, through a real frontend and its worker."""
    packaged(tmp_path, "--onnx", str(graph), "--name", "graph")
    model = Model(nets.net("deep"), resize=32, crop=32, channels_last=False)
    Image.fromarray(noise(80, 64, 3)).save(tmp_path / "picture.png")
    body = (tmp_path / "picture.png").read_bytes()
    with Server(tmp_path, ["graph"], config=ROOT / "config.properties") as server:
        explained = requests.post(f"{server.url}/explanations/graph", data=body, timeout=HANG)
        same(explained.json(), model)
        assert requests.post(f"{server.url}/predictions/graph", data=body, timeout=HANG).json() == explained.json()["predictions"]
        overlay = requests.post(f"{server.url}/explanations/graph", data=body, headers={"accept": "image/png"}, timeout=HANG)
        assert overlay.headers["content-type"] == "image/png"
        with ThreadPoolExecutor(8) as threads:
            bodies = threads.map(lambda _: requests.post(f"{server.url}/explanations/graph", data=body, timeout=HANG), range(24))
        for each in bodies:
            same(each.json(), model)


def test_batches_mix_and_threads_do_not(graph: Path) -> None:
    """Each picture gets what it would have got alone."""
    model = Model(graph, resize=32, crop=32)
    pictures = [Image.fromarray(noise(80, 64, seed)) for seed in range(5)]
    together = model.explain(pictures, top_k=2, method="layercam")
    for picture, one in zip(pictures, together, strict=True):
        (alone,) = model.explain([picture], top_k=2, method="layercam")
        for a, b in zip(one.targets, alone.targets, strict=True):
            assert a.target == b.target
            assert np.abs(a.heatmap - b.heatmap).max() <= 1e-4
    assert torch.is_grad_enabled()
