"""Each operator computes what ONNX says it does: on the examples that ONNX itself brings, of every version."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from camserve.capture.models.programs.graphs.operators.node import GraphError, Node
from camserve.capture.models.programs.graphs.operators.table import OPERATORS
from camserve.capture.models.programs.graphs.reading import to_tensor

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Any]]:
    """ONNX's examples, by the operator that each is of."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where examples divide by zero
        cases = collect_testcases()
    for case in cases:
        nodes = case.model.graph.node if case.model else []
        numbers = all(
            isinstance(value, np.ndarray | np.generic)
            for values in (case.data_sets or [])[:1]
            for part in values
            for value in part
        )
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain and case.data_sets and numbers:
            found.setdefault(nodes[0].op_type, []).append(case)
    return found


def run(case: Any) -> tuple[list[torch.Tensor], list[Any]]:
    """What the operator gives for an example, and what it should."""
    (proto,), (inputs, wanted) = case.model.graph.node, case.data_sets[0]
    given = {
        each.name: to_tensor(onnx.numpy_helper.from_array(np.asarray(value), each.name))
        for each, value in zip(case.model.graph.input, inputs, strict=True)
    }
    attributes = {}
    for each in proto.attribute:
        value = onnx.helper.get_attribute_value(each)
        attributes[each.name] = to_tensor(value) if isinstance(value, onnx.TensorProto) else value
    opset = next(each.version for each in case.model.opset_import if not each.domain)
    node = Node(proto.op_type, opset, tuple(proto.input), tuple(proto.output), attributes)
    tensors = [given[name] if name else None for name in proto.input]
    if any(value is None and name for name, value in zip(proto.input, tensors, strict=True)):
        raise GraphError("a type that is not known here")
    made = OPERATORS[proto.op_type](node, *tensors)
    return list(made) if isinstance(made, tuple) else [made], wanted


WITHOUT = {"QuickGelu", "Constant", "Upsample", "ReduceLogSumExp", "Cast", "CastLike"}
"""Operators of whom ONNX brings no example of one node."""


@pytest.mark.parametrize("kind", sorted(OPERATORS.keys() - WITHOUT))
def test_an_operator_computes_what_onnx_says(kind: str, examples: dict[str, list[Any]]) -> None:
    """Or says that it cannot; no example gives another result."""
    refused = []
    for case in examples[kind]:
        try:
            found, wanted = run(case)
        except (GraphError, IndexError):  # the latter of tensors without any values
            refused.append(case.name)
            continue
        for one, other in zip(found, wanted, strict=False):
            assert tuple(one.shape) == other.shape, case.name
            half = other.dtype.itemsize <= 2
            np.testing.assert_allclose(
                one.double().numpy(),
                np.asarray(other, dtype=np.float64),
                rtol=2e-2 if half else 1e-3,
                atol=2e-3 if half else 1e-5,
                err_msg=case.name,
            )
    assert len(refused) < len(examples[kind]), refused
