"""Reads a file with an ONNX graph, within limits: what it holds is data of anybody's, and nothing beside its folder is opened."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from camserve.core.errors import ConfigError
from camserve.core.text import in_one_line

MAX_BYTES = 2**31 - 2**20
"""Largest graph with its weights: the format (protobuf) takes no more."""

MAX_NODES = 50_000
"""Most operations of a graph; a vision transformer of 40 blocks has some two thousand."""

NESTED = ("If", "Loop", "Scan", "SequenceMap")
"""Operators that hold graphs of their own."""

NOT_INSTALLED = (
    "an ONNX graph takes the packages onnx and onnxruntime, of which {} is not installed here (pip install 'camserve[onnx]')"
)


def check_installed() -> None:
    """Refuse graphs where what reads and runs them is missing.

    Raises:
        ConfigError: a package is not installed.
    """
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(NOT_INSTALLED.format(name))


def read_graph(path: Path) -> Any:
    """Read a graph with its weights, those in files beside it too, as an `onnx.ModelProto` that needs no other file.

    Raises:
        ConfigError: the packages are missing, it is no graph, is damaged, too large, or names files outside of its folder.
    """
    check_installed()
    import onnx  # noqa: PLC0415 an extra, and it takes time

    if not path.is_file():
        raise ConfigError(f"there is no file {path.name}")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path.name} has {path.stat().st_size} bytes; an ONNX graph has at most {MAX_BYTES}")
    try:
        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no operations")
    except Exception as error:  # protobuf's own, which needs no import
        raise ConfigError(
            f"{path.name} is no ONNX graph, or is damaged: {in_one_line(error)}; write it with torch.onnx.export"
        ) from error
    if len(model.graph.node) > MAX_NODES:
        raise ConfigError(f"{path.name} has {len(model.graph.node)} operations; the most is {MAX_NODES}")
    _check_nodes(model, path)
    total = path.stat().st_size + sum(_check_beside(each, path) for each in _list_tensors(model) if _is_beside(each))
    if total > MAX_BYTES:
        raise ConfigError(f"{path.name} has {total} bytes with the files beside it; the most is {MAX_BYTES}")
    try:
        for each in _list_tensors(model):
            if _is_beside(each):
                onnx.external_data_helper.load_external_data_for_tensor(each, str(path.parent))
                each.data_location = onnx.TensorProto.DEFAULT
                del each.external_data[:]
        if not model.functions:
            return model
        import onnx.inliner  # noqa: PLC0415

        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise ConfigError(f"{path.name} is damaged: {in_one_line(error)}") from error


def _check_nodes(model: Any, path: Path) -> None:
    held = next((node for node in model.graph.node if node.op_type in NESTED), None)
    if held is not None:
        raise ConfigError(
            f"{path.name} has the operator {held.op_type}, which chooses or repeats parts of the graph while it runs, so that "
            "its layers are not the same for all pictures: export the model by tracing (torch.onnx.export of the eager model)"
        )
    if model.graph.sparse_initializer:
        raise ConfigError(f"{path.name} has sparse weights; export it with dense ones")


def _list_tensors(model: Any) -> Iterator[Any]:
    """List all constants of a graph."""
    yield from model.graph.initializer
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _is_beside(tensor: Any) -> bool:
    return tensor.data_location == 1 or bool(tensor.external_data)


def _check_beside(tensor: Any, path: Path) -> int:
    """Check where a constant lies in a file beside the graph; return its bytes.

    Raises:
        ConfigError: outside of the graph's folder, or the file is not there, or too short.
    """
    given = {each.key: each.value for each in tensor.external_data}
    place = given.get("location", "")
    folder = path.parent.resolve()
    file = (folder / place).resolve()
    if not place or Path(place).is_absolute() or not file.is_relative_to(folder) or file == folder:
        raise ConfigError(f"{path.name}: its weights are said to lie in {place!r}, outside of its folder")
    if not file.is_file():
        raise ConfigError(f"{path.name}: its weights lie in the file {place!r}, which is not beside it")
    try:
        offset, length = int(given.get("offset", 0)), int(given.get("length", 0))
    except ValueError:
        offset = length = -1
    length = length or file.stat().st_size - offset
    if offset < 0 or length < 0 or offset + length > file.stat().st_size or math.prod(tensor.dims) > 8 * length + 8:
        raise ConfigError(f"{path.name}: the file {place!r} with its weights is shorter than it should be, or damaged")
    return length


def join_files(path: Path, folder: Path) -> Path:
    """Return the path of a graph that needs no other file: `path` itself, or one in `folder` that holds all weights.

    Raises:
        ConfigError: as `read_graph`.
    """
    check_installed()
    import onnx  # noqa: PLC0415 an extra, and it takes time

    model = read_graph(path)
    if not any(map(_is_beside, _list_tensors(onnx.load(str(path), load_external_data=False)))):
        return path
    joined = folder / "joined" / path.name
    joined.parent.mkdir(exist_ok=True)
    joined.write_bytes(model.SerializeToString())
    return joined


def add_outputs(model: Any, scores: str, names: dict[str, str]) -> bytes:
    """Return a graph with other outputs: the scores, and further tensors.

    Args:
        model: what `read_graph` gave; it stays as it is.
        scores: the name of the tensor that becomes the first output, `scores`.
        names: tensors by the names of the outputs that they become.

    A tensor that is made by dequantizing is made once more for its output, so that a runtime still runs what is around it in
    whole numbers.
    """
    import onnx  # noqa: PLC0415 an extra, and it takes time

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    renamed = _rename_apart(changed.graph, {"scores", *names})
    scores, names = renamed.get(scores, scores), {output: renamed.get(tensor, tensor) for output, tensor in names.items()}
    makers = {output: node for node in changed.graph.node for output in node.output}
    types = {each.name: each for each in changed.graph.output}
    del changed.graph.output[:]
    for output, tensor in {"scores": scores, **names}.items():
        maker = makers.get(tensor)
        if maker is not None and maker.op_type == "DequantizeLinear":
            node = onnx.NodeProto()
            node.CopyFrom(maker)
            node.output[:] = [output]
            node.name = ""
        else:
            node = onnx.helper.make_node("Identity", [tensor], [output])
        changed.graph.node.append(node)
        value = onnx.ValueInfoProto(name=output)
        if tensor in types and output == "scores":
            value.type.CopyFrom(types[tensor].type)
        changed.graph.output.append(value)
    del changed.graph.value_info[:]
    data: bytes = changed.SerializeToString()
    return data


def _rename_apart(graph: Any, taken: set[str]) -> dict[str, str]:
    """Give tensors of a graph that have one of these names another; return these by the old ones."""
    own = {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {name: f"{name} (own)" for name in taken & own}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for each in (*graph.initializer, *graph.input, *graph.output):
        each.name = renamed.get(each.name, each.name)
    return renamed
