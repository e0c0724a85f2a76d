"""Each operator computes what ONNX says it does: on the examples that ONNX itself brings, of every version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camserve.capture.models.programs.graphs.operators.node import GraphError, Node
from camserve.capture.models.programs.graphs.operators.table import OPERATORS
from camserve.capture.models.programs.graphs.reading import to_tensor

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.numeric

EXAMPLES = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"


def examples() -> dict[str, list[Path]]:
    """The folders of ONNX's examples, by the operator that each is of."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(EXAMPLES.iterdir()):
        model = onnx.load(folder / "model.onnx")
        if len(model.graph.node) == 1 and model.graph.node[0].op_type in OPERATORS and not model.graph.node[0].domain:
            found.setdefault(model.graph.node[0].op_type, []).append(folder)
    return found


def read(file: Path) -> Any:
    """A tensor of an example."""
    return onnx.load_tensor(file)


def run(folder: Path) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """What the operator gives for an example, and what it should."""
    model = onnx.load(folder / "model.onnx")
    (proto,) = model.graph.node
    data = folder / "test_data_set_0"
    given = {each.name: to_tensor(read(data / f"input_{place}.pb")) for place, each in enumerate(model.graph.input)}
    wanted = [onnx.numpy_helper.to_array(read(data / f"output_{place}.pb")) for place in range(len(model.graph.output))]
    attributes = {}
    for each in proto.attribute:
        value = onnx.helper.get_attribute_value(each)
        attributes[each.name] = to_tensor(value) if isinstance(value, onnx.TensorProto) else value
    opset = next(each.version for each in model.opset_import if not each.domain)
    node = Node(proto.op_type, opset, tuple(proto.input), tuple(proto.output), attributes)
    inputs = [given[name] if name else None for name in proto.input]
    if any(value is None and name for name, value in zip(proto.input, inputs, strict=True)):
        raise GraphError("a type that is not known here")
    made = OPERATORS[proto.op_type](node, *inputs)
    return list(made) if isinstance(made, tuple) else [made], wanted


@pytest.mark.parametrize(("kind", "folders"), examples().items(), ids=lambda each: each if isinstance(each, str) else "")
def test_an_operator_computes_what_onnx_says(kind: str, folders: list[Path]) -> None:
    """Or says that it cannot; no example gives another result."""
    refused = []
    for folder in folders:
        try:
            found, wanted = run(folder)
        except GraphError:
            refused.append(folder.name)
            continue
        for one, other in zip(found, wanted, strict=False):
            assert tuple(one.shape) == other.shape, folder.name
            exact = np.asarray(other, dtype=np.float64)
            half = other.dtype.itemsize == 2
            np.testing.assert_allclose(
                one.double().numpy(), exact, rtol=2e-2 if half else 1e-3, atol=2e-3 if half else 1e-5, err_msg=folder.name
            )
    assert len(refused) < len(folders), refused
