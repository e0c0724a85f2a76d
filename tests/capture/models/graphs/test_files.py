"""Files with graphs come from anybody: what is damaged, or asks for more than pictures need, is refused in one line, cheaply."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.models import graphs, nets

from camserve.capture import load_graph, open_backend
from camserve.capture.models.programs.graphs import file
from camserve.core.config import Config
from camserve.core.errors import ConfigError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
MEMORY = 1 << 19
"""Most that the whole process may grow by in these tests, in KiB."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the net `pooled`."""
    return graphs.write_graph(nets.net("pooled"), tmp_path_factory.mktemp("graph") / "net.onnx", nets.pictures(2))


def refused(path: Path, words: str) -> None:
    """The graph is not opened, the message is one line with these words, and nothing large was made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=words) as caught:
        open_backend(load_graph(path), Config(), SIZE, CPU)
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def saved(graph: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A changed copy of a graph."""
    model = onnx.load(graph)
    change(model)
    (folder / "changed.onnx").write_bytes(model.SerializeToString())
    return folder / "changed.onnx"


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x08\x07" * 40], ids=["empty", "text", "noise"])
def test_what_is_no_graph(data: bytes, tmp_path: Path) -> None:
    """Or nothing."""
    (tmp_path / "net.onnx").write_bytes(data)
    refused(tmp_path / "net.onnx", r"net\.onnx is no ONNX graph, or is damaged: ")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_file_that_is_cut_off(written: Path, tmp_path: Path, share: float) -> None:
    """On its way."""
    data = written.read_bytes()
    (tmp_path / "net.onnx").write_bytes(data[: int(share * len(data))])
    refused(tmp_path / "net.onnx", r"net\.onnx is no ONNX graph, or is damaged: ")


def test_weights_of_another_size_than_they_say(written: Path, tmp_path: Path) -> None:
    """More or fewer numbers than the shape has."""

    def cut(model: Any) -> None:
        model.graph.initializer[0].dims[0] += 1

    refused(saved(written, tmp_path, cut), r"the graph's constant .* is damaged: ")

    def bomb(model: Any) -> None:
        model.graph.initializer[0].dims[0] = 2**40

    refused(saved(written, tmp_path, bomb), r"the graph's constant .* is damaged: a tensor of the shape \[1099511627776, ")


def insert(kind: str, shape: list[int], **attributes: Any) -> Callable[[Any], None]:
    """Puts an operator that makes a large tensor before the scores."""

    def change(model: Any) -> None:
        scores = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["plain" if name == scores else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape"))
        inputs = ["shape"] if kind == "ConstantOfShape" else ["plain", "shape"]
        model.graph.node.append(onnx.helper.make_node(kind, inputs, ["large"], **attributes))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0))
        model.graph.node.append(onnx.helper.make_node("Add", ["plain", "most"], [scores]))

    return change


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("ConstantOfShape", [2**20, 2**20]), ("Expand", [2**30, 1, 5]), ("Tile", [2**25, 2**10]), ("Pad", [0, 0, 0, 2**40])],
)
def test_a_few_bytes_that_ask_for_much_memory(kind: str, shape: list[int], written: Path, tmp_path: Path) -> None:
    """Nothing of it is made, neither by torch nor by the runtime."""
    refused(
        saved(written, tmp_path, insert(kind, shape)),
        r"the operator \w+ that makes large: a tensor of the shape .*; the most is ",
    )


def test_operators_that_are_not_known(written: Path, tmp_path: Path) -> None:
    """Of a library of one's own, or of a runtime: they are named, and what can be done is said."""

    def change(model: Any) -> None:
        model.graph.node[0].domain, model.graph.node[0].op_type = "of.mine", "Secret"

    words = r"changed\.onnx has operators that cannot be differentiated here: of\.mine\.Secret\. .*--runtime onnxruntime"
    refused(saved(written, tmp_path, change), words)


def test_parts_that_are_chosen_while_it_runs(written: Path, tmp_path: Path) -> None:
    """A loop, or a branch: the layers inside are not the same for all pictures."""

    def change(model: Any) -> None:
        model.graph.node[0].op_type = "Loop"

    refused(saved(written, tmp_path, change), r"changed\.onnx has the operator Loop, which chooses or repeats .*by tracing")


def test_inputs_that_are_no_pictures(written: Path, tmp_path: Path) -> None:
    """Two inputs, other numbers of axes, or whole numbers."""

    def another(model: Any) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("age", 1, [1]))

    refused(saved(written, tmp_path, another), r"takes 2 inputs \(pictures or age\), and camserve gives it pictures alone")

    def signal(model: Any) -> None:
        del model.graph.input[0].type.tensor_type.shape.dim[3]

    refused(saved(written, tmp_path, signal), r"takes \[None, 3, 32\], and pictures are \[N, channels, height, width\]")

    def whole(model: Any) -> None:
        model.graph.input[0].type.tensor_type.elem_type = 2

    refused(saved(written, tmp_path, whole), r"takes pictures of ONNX's type 2; accepted are float32, float16 or float64")


def test_pictures_of_another_size_or_depth(written: Path, tmp_path: Path) -> None:
    """What it takes is said, and what to do about channels."""
    path = graphs.write_graph(nets.net("pooled"), tmp_path / "net.onnx", nets.pictures(2, side=64))
    refused(path, r"does not run on pictures of shape \[2, 3, 32, 32\]: the graph was written for 64x64, and given 32x32$")
    with pytest.raises(ConfigError, match=r"have 3 channels, but got 1 channels; .*channels: 3 \(--channels 3\) feeds it RGB"):
        open_backend(load_graph(written), Config(channels=1, mean=(0.5,), std=(0.5,)), SIZE, CPU)


def beside(graph: Path, folder: Path, place: str = "weights.bin") -> Path:
    """The graph, with its weights in a file beside it."""
    onnx.save_model(onnx.load(graph), folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_weights_in_a_file_beside_the_graph(written: Path, tmp_path: Path) -> None:
    """They are read, and the answers are the same; packaging makes one file of both."""
    folder = tmp_path / "split"
    folder.mkdir()
    path = beside(written, folder)
    joined = file.join_files(path, tmp_path)
    assert joined == tmp_path / "joined" / "net.onnx"
    assert file.join_files(written, tmp_path) == written
    batch = nets.pictures(2)
    answers = [open_backend(load_graph(each), Config(), SIZE, CPU).capture.forward(batch, ()) for each in (written, path, joined)]
    assert torch.equal(answers[0].values, answers[1].values)
    assert torch.equal(answers[0].values, answers[2].values)


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "", "."])
def test_weights_outside_of_the_folder_are_not_read(place: str, written: Path, tmp_path: Path) -> None:
    """A graph may name any file of the worker's."""
    (tmp_path / "outside.bin").write_bytes(bytes(100_000))
    folder = tmp_path / "inside"
    folder.mkdir()
    refused(beside(written, folder, place), r"net\.onnx: its weights are said to lie in '.*', outside of its folder")


def test_a_link_that_leads_outside_is_not_followed(written: Path, tmp_path: Path) -> None:
    """Nor is a file that is not there, or too short."""
    (tmp_path / "outside.bin").write_bytes(bytes(100_000))
    folder = tmp_path / "inside"
    folder.mkdir()
    path = beside(written, folder)
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[: len(data) // 2])
    refused(path, r"the file 'weights\.bin' with its weights is shorter than it should be, or damaged")
    (folder / "weights.bin").unlink()
    refused(path, r"its weights lie in the file 'weights\.bin', which is not beside it")
    (folder / "weights.bin").symlink_to(tmp_path / "outside.bin")
    refused(path, r"said to lie in 'weights\.bin', outside of its folder")


def test_missing_packages_are_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ConfigError, match=r"of which onnxruntime is not installed here \(pip install 'camserve\[onnx\]'\)"):
        load_graph(written)


def test_a_graph_whose_runtime_gives_other_answers_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that is computed otherwise than the runtime does would put maps in the wrong place."""
    from camserve.capture.models.programs.graphs.operators import elementwise, table

    wrong = {**table.OPERATORS, "Relu": elementwise.one(lambda x: x.clamp(min=0.05))}
    monkeypatch.setattr(table, "OPERATORS", wrong)
    refused(written, r"ONNX Runtime's answers for this graph are not those that its operators stand for.*: probabilities differ")
