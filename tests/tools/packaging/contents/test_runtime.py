"""`--runtime`: what an archive records and holds, and what its worker makes of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.support.build import noise
from tests.support.models.tiny import LABELS, SMALL, Tiny, package_model, write_model
from tests.support.processes.fork_server import ForkServer

from camserve import Model
from camserve.capture.runtimes import choose, engines
from camserve.capture.runtimes.graph import BEHIND, GRAPH
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents import runtime as chosen

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> tuple[Path, str]:
    """The tiny model with its graph, tried in a fresh process."""
    arguments = write_model(tmp_path_factory.mktemp("runtime"))
    with pytest.MonkeyPatch.context() as patch:
        fork_server.replace_fresh(patch)
        return package_model([*arguments, "--runtime", "onnxruntime"])


def settings_of(archive: Path) -> dict[str, object]:
    """The section `explain:` of an archive."""
    with zipfile.ZipFile(archive) as opened:
        section: dict[str, object] = yaml.safe_load(opened.read("model-config.yaml"))["explain"]
        return section


def test_the_archive_holds_the_graph_and_its_worker_reads_it(packaged: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written at load; the answers are those of the same archive in torch."""
    archive, told = packaged
    assert "Runtime: onnxruntime; its graph (" in told
    assert settings_of(archive)["runtime"] == "onnxruntime"
    monkeypatch.setattr(choose, "export_graph", lambda *_: pytest.fail("written again"))
    model = Model.from_archive(archive)
    assert model.metadata["runtime"]["name"] == "onnxruntime"
    assert model.metadata["runtime"]["layers"] == model.metadata["layers"]
    monkeypatch.setattr(choose, "is_installed", lambda _name: False)
    plain = Model.from_archive(archive)
    assert plain.metadata["runtime"]["name"] == "torch"
    pictures = [Image.fromarray(noise(80, 64, 3))]
    (found,), (wanted,) = (each.explain(pictures, top_k=2) for each in (model, plain))
    for one, other in zip(found.targets, wanted.targets, strict=True):
        assert one.target == other.target
        assert np.abs(one.heatmap - other.heatmap).max() <= 1e-4


def test_packaged_again_it_has_a_graph_of_its_own(
    packaged: tuple[Path, str], tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old archive's graph is left behind: a new layer, or new weights, would not be in it."""
    fork_server.replace_fresh(monkeypatch)
    arguments = ["--from-archive", str(packaged[0]), "--trust", "--name", "again", "--export-path", str(tmp_path)]
    again, _ = package_model(arguments)
    with zipfile.ZipFile(again) as opened:
        assert [name for name in opened.namelist() if name.endswith(".onnx")] == [GRAPH]
    assert settings_of(again)["runtime"] == "onnxruntime"
    plain, _ = package_model([*arguments, "--runtime", "torch", "--force"])
    with zipfile.ZipFile(plain) as opened:
        assert GRAPH not in opened.namelist()


def test_a_graph_that_is_split_lies_in_the_archive(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker explains with what is before the layer, predicts with both, and gives the same scores both ways."""
    fork_server.replace_fresh(monkeypatch)
    start = "self.bend = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))"
    arguments = write_model(tmp_path, start=start, step="return self.bend(self.features(x).mean((2, 3)))")
    made: dict[str, Any] = {}
    exec((tmp_path / "tiny.py").read_text(), made)
    torch.save(made["Tiny"]().state_dict(), tmp_path / "tiny.pth")
    archive, told = package_model([*arguments, "--runtime", "onnxruntime"])
    with zipfile.ZipFile(archive) as opened:
        assert {name for name in opened.namelist() if name.endswith(".onnx")} == {GRAPH, BEHIND}
        assert f"its graph ({sum(opened.getinfo(name).file_size for name in (GRAPH, BEHIND)) / 1e6:.1f} MB)" in told
    monkeypatch.setattr(choose, "export_graph", lambda *_: pytest.fail("written again"))
    model = Model.from_archive(archive)
    runs: list[str] = []
    for kind in (engines.SessionEngine, engines.Part):

        def run(*given: Any, kind: Any = kind, own: Any = kind.run) -> Any:
            runs.append(kind.__name__)
            return own(*given)

        monkeypatch.setattr(kind, "run", run)
    picture = Image.fromarray(noise(80, 64, 3))
    (explained,), (predicted,) = model.explain([picture], top_k=3), model.predict([picture])
    assert runs == ["Part", "SessionEngine"]
    alone = {score.label: score.probability for score in predicted}
    assert {each.label: each.probability for each in explained.targets} == pytest.approx(alone, abs=1e-5)


def test_auto_records_what_is_fastest(tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name, never `auto`: replicas that measured for themselves could come to different results."""
    fork_server.replace_fresh(monkeypatch)
    for seconds, wanted in (({"torch": 1.0, "onnxruntime": 0.5}, "onnxruntime"), ({"torch": 1.0, "onnxruntime": 0.95}, "torch")):
        monkeypatch.setattr(
            choose, "measure", lambda captures, *_, took=seconds: {name: took.get(name, 2.0) for name in captures}
        )
        archive, told = package_model([*write_model(tmp_path), "--runtime", "auto", "--force"])
        assert settings_of(archive)["runtime"] == wanted
        assert f"Runtime: {wanted}, the fastest here" in told
        with zipfile.ZipFile(archive) as opened:
            assert (GRAPH in opened.namelist()) is (wanted != "torch")


def test_a_program_runs_in_torch_and_packaging_says_what_to_do(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript is offered no runtime: `auto` names torch and the way to one, and whoever asks for one is refused."""
    fork_server.replace_fresh(monkeypatch)
    torch.jit.save(torch.jit.trace(Tiny().eval(), torch.zeros(1, 3, 64, 64)), tmp_path / "net.pt")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    flags = ["--torchscript", str(tmp_path / "net.pt"), "--labels", str(tmp_path / "labels.json"), "--name", "net", *SMALL]
    archive, told = package_model([*flags, "--export-path", str(tmp_path), "--runtime", "auto"])
    assert "Runtime: torch: a model of the kind torchscript runs in torch alone; written as an ONNX graph" in told
    assert settings_of(archive)["runtime"] == "torch"
    with pytest.raises(ToolError, match=r"--runtime onnxruntime cannot be had: .* packaged with --onnx"):
        package_model([*flags, "--export-path", str(tmp_path), "--runtime", "onnxruntime", "--force"])


def test_what_was_asked_for_and_cannot_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the words that help, and no archive."""
    monkeypatch.setattr(choose, "is_installed", lambda _name: False)
    with pytest.raises(
        ToolError, match=r"--runtime openvino cannot be had: openvino: openvino is not installed here .*\[openvino\]"
    ):
        package_model([*write_model(tmp_path), "--runtime", "openvino"])
    monkeypatch.setattr(choose, "is_installed", lambda name: name == "onnxruntime")
    monkeypatch.setattr(chosen, "_compare", lambda *_: "onnxruntime: layer x: heatmaps differ by 0.1")
    with pytest.raises(ToolError, match=r"heatmaps differ by 0\.1; --runtime torch does without"):
        package_model([*write_model(tmp_path), "--runtime", "onnxruntime"])
    assert not list(tmp_path.glob("*.mar"))
