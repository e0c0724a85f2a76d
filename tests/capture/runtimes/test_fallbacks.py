"""What cannot be had, or is not torch's own answer, is not used: torch runs, and the log has a line that says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn

from camserve.capture import Backend, open_backend
from camserve.capture.runtimes import choose
from camserve.core.config import Config
from camserve.core.errors import ConfigError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)


def opened(model: object, graph: Path | None = None, runtime: str = "onnxruntime", **keys: Any) -> Backend:
    """A model in a runtime."""
    return open_backend(model, Config(runtime=runtime, **{"channels_last": False, **keys}), SIZE, CPU, graph=graph)


def in_torch(made: Backend, log: pytest.LogCaptureFixture, why: str) -> None:
    """Torch runs, exactly as without a runtime, and both the log and the metadata say why, in one line."""
    assert made.runtime.name == "torch"
    assert why in made.runtime.why
    (line,) = [record.message for record in log.records if record.levelno == logging.WARNING]
    assert line == choose.REFUSED % made.runtime.why
    assert "\n" not in line
    batch = nets.pictures(2)
    plain = open_backend(nets.net("pooled"), Config(channels_last=False), SIZE, CPU)
    found, wanted = (each.capture.forward(batch, ["features"]) for each in (made, plain))
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.activation("features"), wanted.activation("features"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """The graph of the net `pooled`, as packaging writes it: at a path where there is none yet."""
    path = tmp_path / "graph.onnx"
    assert opened(nets.net("pooled"), path).runtime.name == "onnxruntime"
    return path


def test_a_graph_that_is_there_is_read(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker needs no `onnx`, and no time to write it."""
    monkeypatch.setattr(choose, "export_graph", lambda *_: pytest.fail("written again"))
    assert opened(nets.net("pooled"), graph).runtime.name == "onnxruntime"


def test_a_runtime_that_is_not_installed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the extra answers as one that knows no runtimes."""
    monkeypatch.setattr(choose, "is_installed", lambda _name: False)
    in_torch(opened(nets.net("pooled")), caplog, "onnxruntime is not installed here (pip install 'camserve[onnxruntime]')")


def test_a_graph_that_cannot_be_read(graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged on its way, or no graph at all."""
    graph.write_bytes(graph.read_bytes()[:1000])
    in_torch(opened(nets.net("pooled"), graph), caplog, "onnxruntime: ")


def alter(path: Path, name: Callable[[str], bool], change: Callable[[Tensor], Tensor]) -> None:
    """Changes the numbers of those constants of a graph whose name is meant."""
    model = onnx.load(path)
    meant = [each for each in model.graph.initializer if name(each.name)]
    assert meant
    for each in meant:
        numbers = torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
        each.CopyFrom(onnx.numpy_helper.from_array(change(numbers).numpy(), each.name))
    onnx.save(model, path)


def test_a_graph_of_other_weights_is_refused(graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an earlier training, or altered: its scores are not the model's."""
    alter(graph, lambda name: "fc" in name and "weight" in name, lambda numbers: numbers * 1.01)
    in_torch(opened(nets.net("pooled"), graph), caplog, "its answers are not torch's: probabilities differ by ")


def test_a_graph_whose_scores_alone_are_right(graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The layer's output is another tensor of the right shape: predictions run in the graph, explanations in torch."""
    model = onnx.load(graph)
    (output,) = [each for each in model.graph.output if each.name == "at:features"]
    (maker,) = [node for node in model.graph.node if "at:features" in node.output]
    scale = onnx.numpy_helper.from_array(torch.linspace(0.5, 1, 8).reshape(8, 1, 1).numpy(), "scale")
    model.graph.initializer.append(scale)
    for node in model.graph.node:
        node.input[:] = ["own" if each == "at:features" else each for each in node.input]
    maker.output[:] = ["own" if each == "at:features" else each for each in maker.output]
    model.graph.node.append(onnx.helper.make_node("Mul", ["own", "scale"], [output.name]))
    onnx.save(model, graph)
    made = opened(nets.net("pooled"), graph)
    assert (made.runtime.name, made.runtime.layers) == ("onnxruntime", ())
    assert "layer features is explained in torch, for onnxruntime gives another answer: its activation differs" in caplog.text
    plain = open_backend(nets.net("pooled"), Config(channels_last=False), SIZE, CPU)
    found, wanted = (each.capture.forward(nets.pictures(2), ["features"]) for each in (made, plain))
    assert torch.equal(found.activation("features"), wanted.activation("features"))


def test_layers_that_the_graph_does_not_give_are_explained_in_torch(graph: Path) -> None:
    """Somebody has added a layer to the archive's configuration."""
    made = opened(nets.net("pooled"), graph, layers=("features", "stem"))
    assert (made.runtime.name, made.runtime.layers) == ("onnxruntime", ("features",))
    plain = open_backend(nets.net("pooled"), Config(channels_last=False, layers=("stem",)), SIZE, CPU)
    found, wanted = (each.capture.forward(nets.pictures(2), ["stem"]) for each in (made, plain))
    assert torch.equal(found.activation("stem"), wanted.activation("stem"))


class Counting(nets.Pooled):
    """Divides its scores by the number of pictures, as tracing sees it: a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return super().forward(x) * torch.arange(1, len(x) + 1)[:, None]


class Deciding(nets.Pooled):
    """Takes pictures from 0 to 255, and others, as some published models do."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return super().forward(x / 255 if x.max() > 50 else x)


def test_a_model_that_decides_by_values_has_no_graph(caplog: pytest.LogCaptureFixture) -> None:
    """All pictures of a trial may go one way: no comparison would show what a graph makes of others."""
    torch.manual_seed(0)
    made = opened(Deciding().eval())
    assert (made.runtime.name, made.runtime.why) == ("torch", f"onnxruntime: {choose.DECIDES}")
    bright, dim = (made.capture.forward(nets.pictures(1) * scale, ()).values for scale in (100.0, 100 / 255))
    assert torch.allclose(bright, dim, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_tracing_has_fixed_shows(caplog: pytest.LogCaptureFixture) -> None:
    """The graph was written with two pictures, and is tried with one and with three."""
    model = Counting().eval()
    made = opened(model)
    assert made.runtime.name == "torch"
    assert made.runtime.why


@pytest.mark.parametrize(
    ("model", "keys", "why"),
    [
        (lambda: nets.loaded("pooled", "script"), {}, "a model of the kind torchscript runs in torch alone"),
        (lambda: nets.net("pooled"), {"precision": "bfloat16"}, "it computes in float32, and this model in bfloat16 or float32"),
        (lambda: nn.Sequential(nets.Pooled().half(), nn.Identity()).eval(), {}, "this model in float16 or float32"),
    ],
)
def test_models_that_run_in_torch_alone(model: Callable[[], object], keys: dict[str, Any], why: str) -> None:
    """Said when the model is loaded."""
    if "script" in why:
        keys = {**keys, "channels_last": None}
    made = opened(model(), **keys)
    assert made.runtime.name == "torch"
    assert why in made.runtime.why


def test_a_session_is_refused_with_what_to_do(graph: Path) -> None:
    """TorchServe makes one of an archive with a graph; it shows no layers, and the graph itself does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"a session of ONNX Runtime has no layers .*camserve\.Model\('net\.onnx'\)"):
        open_backend(onnxruntime.InferenceSession(str(graph)), Config(), SIZE, CPU)
