"""Loads a model's class and an archive's handler, and asks it, through TorchServe's own worker code."""

# ruff: noqa: PLC0415

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def model_class(module: str) -> type:
    """The one class of a model's file, as TorchServe finds it."""
    from ts.utils.util import list_classes_from_module

    classes = list_classes_from_module(importlib.import_module(module))
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise ValueError(f"the model's file must define exactly one class, got {names}")
    found: type = classes[0]
    return found


def words(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def load_service(directory: Path) -> Any:
    """The archive's handler, initialised on the CPU, in TorchServe's own `ts.service.Service`.

    `directory` must be first on `sys.path`, as in a worker. Raises whatever the handler raises when it loads.
    """
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import ModelLoaderFactory

    model = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    if (directory / model["handler"]).is_file():
        importlib.import_module(Path(model["handler"]).stem)  # the loader would hide why this fails
    service = ModelLoaderFactory.get_model_loader().load(
        model["modelName"], str(directory), model["handler"], None, 1, metrics_cache=metrics
    )
    service.set_cl_socket(None)
    return service


def handler_of(service: Any) -> Any:
    """The handler that a loaded service calls; None where it calls a function. TorchServe has no public name for it."""
    return getattr(service._entry_point, "__self__", None)


def check_prepared(service: Any) -> None:
    """Raises what every request would fail with; TorchServe would answer it with "Prediction failed" only."""
    check = getattr(handler_of(service), "check_unchanged", None)
    if check:
        check()


@dataclass(frozen=True)
class Row:
    """One request as TorchServe's frontend hands it to a worker; a raw body is the field `body`.

    `explain` is the header by which the frontend tells `/explanations` from `/predictions`; None: a route without it.
    """

    fields: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    explain: bool | None = False


@dataclass(frozen=True)
class Response:
    """One answer as the worker hands it back."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes


def ask(service: Any, rows: Sequence[Row]) -> list[Response]:
    """Sends one batch through the worker's own encoding, and reads the answers back from it."""
    batch = [
        {
            "requestId": f"request-{index}".encode(),
            "parameters": [{"name": k, "value": v, "contentType": ""} for k, v in row.fields.items()],
            "headers": [
                {"name": name.encode(), "value": value.encode()}
                for name, value in {**row.headers, **({} if row.explain is None else {"explain": str(row.explain)})}.items()
            ],
        }
        for index, row in enumerate(rows)
    ]
    return _decoded(bytes(service.predict(batch)), len(batch))


def _decoded(message: bytes, count: int) -> list[Response]:
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("!i", message, at - 4)[0])

    def data() -> bytes:
        nonlocal at
        length = number()
        at += length
        return message[at - length : at]

    number(), data()  # the batch's own code and message
    responses = []
    for _ in range(count):
        data()  # the request's id
        content_type, status, _phrase = data().decode(), number(), data()
        headers = {data().decode(): data().decode() for _ in range(number())}
        responses.append(Response(status, content_type, headers, data()))
    return responses
