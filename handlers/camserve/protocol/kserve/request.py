"""Bodies of KServe's V1 and of the Open Inference Protocol V2, with its binary extension, become a `Request`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.messages import Call, Encoded, Image, Item, Options, Output, Request
from camserve.core.text import join_names, show
from camserve.protocol.body import read_image
from camserve.protocol.kserve.outputs import list_outputs
from camserve.protocol.options import Given, OptionReader
from camserve.protocol.tensors import read_numbers, read_tensor, shape_of_lists

PLACES = ("data", "b64", "image_bytes")
"""Where an instance may hold its picture; `{"b64": ...}` may stand around it, as TensorFlow Serving's clients write it."""

_V1_KEYS = frozenset(("instances", "signature_name"))
_V2_KEYS = frozenset(("id", "model_name", "model_version", "parameters", "inputs", "outputs"))
FOREIGN_PARAMETERS = frozenset(
    (
        *("binary_data", "binary_data_output", "binary_data_size", "classification", "content_type", "headers"),
        *("priority", "sequence_end", "sequence_id", "sequence_start", "timeout"),
    )
)
"""What KServe, Triton and MLServer put among V2's parameters, none of it an option."""


def parse_v1(body: Mapping[str, Any], call: Call, config: Config, reader: OptionReader) -> Request:
    """Reads `{"instances": [...]}`.

    An instance is `{"data": ..., options}`, with `b64` or `image_bytes` in place of `data`, base64 or a tensor. Options are
    checked whether or not explanations are asked for; `Accept` is ignored.

    Raises:
        RequestError: 413 `TooManyInstances`; 400, a bad instance's message starting with its index from 0, `instance 1:`.
    """
    _refuse_others(body, _V1_KEYS, "in V1 the options stand inside each instance, beside data")
    instances = body["instances"]
    if not isinstance(instances, list) or not instances:
        raise RequestError(400, "NoImage", f"instances: expected a list of at least one, got {show(instances)}")
    _check_count(len(instances), config)
    headers = reader.from_headers(call.headers)
    items: list[Item] = []
    for index, instance in enumerate(instances):
        try:
            items.append(_read_instance(instance, headers, config, reader))
        except RequestError as error:
            raise error.inside(f"instance {index}") from None
    return Request("v1", call.explain, tuple(items))


def _read_instance(instance: object, headers: Mapping[str, Given], config: Config, reader: OptionReader) -> Item:
    options: dict[str, object] = {}
    place = "data"
    if isinstance(instance, dict):
        options = dict(instance)
        place = next((name for name in PLACES if name in options), "")
        if not place:
            names = join_names(options, 5, show) or "{}"
            raise RequestError(400, "NoImage", f"expected an object with {join_names(PLACES)}, got only {names}")
        instance = options.pop(place)
        if place != "b64" and isinstance(instance, dict) and set(instance) == {"b64"}:
            place, instance = f"{place}.b64", instance["b64"]
            if not isinstance(instance, str):
                raise RequestError(400, "InvalidBase64", f"{place}: expected base64, got {show(instance)}")
    image = read_image(instance, config, place)
    given = reader.merge(headers, reader.from_values(options, "json"))
    return Item(image, _read_options(given, reader, not isinstance(image, Encoded)))


def parse_v2(body: Mapping[str, Any], tail: bytes, call: Call, config: Config, reader: OptionReader) -> Request:
    """Reads one input, BYTES `[n]` or FP32 `[n, channels, H, W]`, and `parameters` for all its images.

    An input's own parameters beat the request's. BYTES elements are base64 in JSON, encoded pictures or base64 in the binary
    extension. `Accept` is ignored.

    Args:
        body: the parsed JSON.
        tail: the bytes after it, in the binary extension.
        call: for its headers.
        config: the limits.
        reader: of the options.

    Raises:
        RequestError: 413 `TooManyInstances`; 400, a bad image's message starting with its index from 0, `instance 1:`.
    """
    _refuse_others(body, _V2_KEYS, "in V2 the options stand under parameters")
    inputs = body["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(400, "NoImage", f"inputs: expected a list of one input, BYTES or FP32, got {show(inputs)}")
    parameters = _read_parameters(body, "parameters")
    own = _read_parameters(inputs[0], "the input's parameters")
    shape = _read_shape(inputs[0].get("shape"), config)
    _check_count(shape[0], config)
    images = _read_images(inputs[0], own, shape, tail, config)
    given = reader.from_headers(call.headers)
    for values in (parameters, own):
        options = {name: value for name, value in values.items() if name not in FOREIGN_PARAMETERS}
        given = reader.merge(given, reader.from_values(options, "parameter"))
    asked = _read_options(given, reader, not isinstance(images[0], Encoded))
    if asked.overlay:
        raise RequestError(400, "InvalidOption", "overlay: V2 outputs hold no pictures; expected false, got true")
    return Request(
        "v2",
        call.explain,
        tuple(Item(image, asked) for image in images),
        id=_read_id(body.get("id")),
        outputs=_read_outputs(body.get("outputs"), list_outputs(explain=call.explain, values=reader.scores == "none")),
        binary=_read_flag(parameters, "binary_data_output") or False,
    )


def _refuse_others(body: Mapping[str, Any], known: frozenset[str], hint: str) -> None:
    others = [name for name in body if name not in known]
    if others:
        raise RequestError(400, "UnknownOption", f"unknown key {show(others[0])}; {hint}")


def _check_count(count: int, config: Config) -> None:
    if count > config.max_instances:
        message = f"expected at most {config.max_instances} images in one request, got {show(count)}"
        raise RequestError(413, "TooManyInstances", message)


def _read_options(given: Mapping[str, Given], reader: OptionReader, tensor: bool) -> Options:
    if "format" in given:
        value = given["format"].value
        if value != "json":
            message = f"format: answers on KServe's routes are JSON; expected json, got {show(value)}"
            raise RequestError(400, "InvalidOption", message)
    return reader.read(given, None, tensor)


def _read_parameters(holder: Mapping[str, Any], place: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(400, "InvalidOption", f"{place}: expected an object, got {show(parameters)}")
    return parameters


def _read_flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, "InvalidOption", f"{name}: expected true or false, got {show(value)}")
    return value


def _read_id(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RequestError(400, "InvalidOption", f"id: expected a string, got {show(value)}")
    return value


def _read_outputs(value: object, names: tuple[str, ...]) -> tuple[Output, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(output, dict) for output in value):
        raise RequestError(400, "InvalidOption", f"outputs: expected a list of objects with a name, got {show(value)}")
    outputs: dict[str, Output] = {}
    for output in value:
        name = output.get("name")
        if name not in names:
            raise RequestError(400, "InvalidOption", f"outputs: expected {join_names(names, 20)}, got {show(name)}")
        binary = _read_flag(_read_parameters(output, "the output's parameters"), "binary_data")
        outputs[name] = Output(name, binary)
    return tuple(outputs.values())


def _read_shape(value: object, config: Config) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 4 or not all(_is_size(size) for size in value):
        raise _invalid(f"shape: expected [n] for BYTES or [n, {config.channels}, H, W] for FP32, got {_repeated(value)}")
    return tuple(value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_images(
    tensor: Mapping[str, Any], own: Mapping[str, Any], shape: tuple[int, ...], tail: bytes, config: Config
) -> list[Image]:
    datatype, data, size = tensor.get("datatype"), tensor.get("data"), own.get("binary_data_size")
    if size is None and tail:
        raise _invalid(f"binary_data_size: expected {len(tail)}, the bytes after the JSON, got none")
    if size is not None and (isinstance(size, bool) or size != len(tail) or data is not None):
        raise _invalid(f"binary_data_size: expected {len(tail)}, the bytes after the JSON, and no data, got {show(size)}")
    if datatype == "BYTES" and (len(shape) == 1 or shape[1:] == (1,)):
        elements = _read_elements(data, shape[0]) if size is None else _decode_elements(tail, shape[0])
        return list(_each(elements, lambda element: read_image(element, config, "data")))
    if datatype == "FP32" and len(shape) == 4 and shape[1] == config.channels:
        array = _read_numbers(data, shape) if size is None else _decode_numbers(tail, shape)
        return list(_each(array, lambda image: read_tensor(image, config)))
    raise _invalid(f"expected BYTES [n] or FP32 [n, {config.channels}, H, W], got {show(datatype)} {_repeated(list(shape))}")


def _each(elements: Iterable[Any], read: Callable[[Any], Image]) -> Iterator[Image]:
    for index, element in enumerate(elements):
        try:
            yield read(element)
        except RequestError as error:
            raise error.inside(f"instance {index}") from None


def _read_elements(data: object, count: int) -> list[object]:
    elements = data if isinstance(data, list) else []
    if all(isinstance(row, list) and len(row) == 1 for row in elements):
        elements = [row[0] for row in elements]
    if len(elements) != count:
        raise _invalid(f"data: expected a list of {count} base64 strings, as the shape says, got {show(data)}")
    for index, element in enumerate(elements):
        if not isinstance(element, str):
            message = f"instance {index}: data: expected base64 or a data: URL, got {show(element)}"
            raise RequestError(400, "InvalidBase64", message)
    return elements


def _decode_elements(tail: bytes, count: int) -> list[bytes]:
    """Splits the binary part: each element is its length, 4 bytes, little-endian, and its bytes."""
    elements: list[bytes] = []
    start = 0
    while start + 4 <= len(tail) and len(elements) < count:
        end = start + 4 + int.from_bytes(tail[start : start + 4], "little")
        elements.append(tail[start + 4 : end])
        start = end
    if len(elements) != count or start != len(tail):
        raise _invalid(f"expected {count} elements, each after its 4-byte little-endian length, in {len(tail)} bytes")
    return elements


def _read_numbers(data: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Reads nested lists of just this shape, or one flat list in row-major order."""
    came = shape_of_lists(data)
    try:
        if tuple(came) not in (shape, (math.prod(shape),)):
            raise ValueError(f"shape {_repeated(came)}" if came else show(data))
        return read_numbers(data, came, ["ragged lists"] * len(came)).reshape(shape)
    except ValueError as error:
        raise _invalid(f"data: expected numbers of shape {_repeated(list(shape))}, flat or nested, got {error}") from None


def _decode_numbers(tail: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    if len(tail) != 4 * math.prod(shape):
        raise _invalid(f"expected FP32 of shape {_repeated(list(shape))}, 4 bytes each, got {len(tail)} bytes")
    return np.frombuffer(tail, "<f4").reshape(shape)


def _repeated(value: object) -> str:
    """Repeats a short list of sizes as it stands, and shortens everything else."""
    if isinstance(value, list) and len(value) <= 8 and all(type(size) is int and abs(size) < 10**9 for size in value):
        return str(value)
    return show(value)


def _invalid(message: str) -> RequestError:
    return RequestError(400, "InvalidTensor", message)
