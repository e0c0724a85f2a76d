"""Runs an archive's handler and answers batches: `python child/__main__.py DESCRIPTOR ARCHIVE GPU BATCH`.

It imports nothing of the server's own camserve: the archive brings its own, which may be of another release. Messages are
pickled over an inherited socket, of which this process and the server are the only ends: first `("ready", None)` or
`("failed", why)`, then a list of answers for each list of requests. `("measure", requests)` gets the answers and the statistics
of each, `("describe", [])` what a reference holds for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

logger = logging.getLogger("camserve.host")

Asked = tuple[dict[str, Any], dict[str, Any]]
"""A request's fields and headers."""
Answered = tuple[int, str, dict[str, str], bytes]
"""Status, content type (empty: none), headers, body."""

LONG_JSON = 1 << 20
"""Bytes of JSON that camserve's handler gets unparsed, as `protocol/body.MAX_PARSED`."""

OURS = "gradcam_handler"
STAND_IN = Path(__file__).resolve().parents[1] / "standin"


class Headers(dict[str, Any]):
    """A request's headers, found in any case: TorchServe leaves their names as the client spells them, and handlers ask so."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value by its name in any case."""
        return super().get(name, super().get(name.lower(), default))


class Metrics:
    """What a handler reports, as lines on standard output, for the server; `cache`: what the archive's camserve declares."""

    def __init__(self, model: str, directory: Path) -> None:
        self.request_ids: Mapping[int, str] = {}
        self._model = model
        self._host = socket.gethostname()
        self.cache: dict[str, list[str]] = {"declared": _declared(directory / "camserve" / "metrics.yaml")}

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "count",
        idx: Any = None,  # noqa: ARG002 TorchServe's signature
        dimensions: Sequence[Any] = (),
        metric_type: Any = "counter",
    ) -> None:
        """Add to a counter, or set a gauge; dimensions have a name and a value."""
        kind = str(getattr(metric_type, "value", metric_type)).upper()
        labels = ",".join([*(f"{each.name}:{each.value}" for each in dimensions), f"ModelName:{self._model}", "Level:Model"])
        line = f"[METRICS]{name}.{unit}:{value}|#{labels}|#type:{kind}|#hostname:{self._host},{int(time.time())}"
        os.write(1, f"\n{line}\n".encode())

    def add_time(self, name: str, value: float, idx: Any = None, unit: str = "ms", dimensions: Sequence[Any] = ()) -> None:
        """Set a gauge of a time."""
        self.add_metric(name, value, unit, idx, dimensions, "gauge")

    def add_size(self, name: str, value: float, idx: Any = None, unit: str = "MB", dimensions: Sequence[Any] = ()) -> None:
        """Set a gauge of a size."""
        self.add_metric(name, value, unit, idx, dimensions, "gauge")

    def add_percent(self, name: str, value: float, idx: Any = None, dimensions: Sequence[Any] = ()) -> None:
        """Set a gauge of a percentage."""
        self.add_metric(name, value, "percent", idx, dimensions, "gauge")

    def add_counter(self, name: str, value: float, idx: Any = None, dimensions: Sequence[Any] = ()) -> None:
        """Add to a counter."""
        self.add_metric(name, value, "count", idx, dimensions)

    def add_error(self, name: str, value: Any, dimensions: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Log an error; it is no number."""
        logger.error("%s: %s", name, value)


def _declared(path: Path) -> list[str]:
    import yaml  # noqa: PLC0415 the archive's folder must be on the path first

    if not path.is_file():
        return []
    kinds = (yaml.safe_load(path.read_text("utf-8")) or {}).get("model_metrics") or {}
    return [each["name"] for metrics in kinds.values() for each in metrics]


def find_entry(handler: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any] | None]:
    """Find what answers batches, and what loads the model: a class's methods or a module's functions, as TorchServe does.

    Raises:
        ValueError: the handler has neither.
    """
    name, _, function = handler.partition(":")
    name = Path(name).name.removesuffix(".py")
    found = importlib.util.find_spec(name) is not None
    module = importlib.import_module(name if found else f"ts.torch_handler.{name}")
    function = function or "handle"
    if hasattr(module, function):
        return getattr(module, function), getattr(module, "initialize", None)
    own = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    if len(own) != 1:
        names = ", ".join(each.__name__ for each in own) or "none"
        raise ValueError(f"the handler {handler} must define a function {function} or exactly one class, got {names}")
    instance = own[0]()
    return getattr(instance, function), getattr(instance, "initialize", None)


def parse_json(fields: Mapping[str, Any], headers: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Parse fields of up to `most` bytes as TorchServe's codec does: JSON by its exact content type, bytes where it is none."""
    parsed = dict(fields)
    for name, value in fields.items():
        about = headers.get(name)
        says_json = isinstance(about, Mapping) and about.get("content-type") == "application/json"
        if says_json and isinstance(value, (bytes, bytearray)) and len(value) <= most:
            with contextlib.suppress(ValueError, RecursionError):
                parsed[name] = json.loads(value.decode())  # of bytes it would read UTF-16 too
    return parsed


def needs_torchserve(directory: Path) -> bool:
    """Return whether an archive may want more of TorchServe's modules than the stand-in has: a handler, or a module, of its own.

    Where TorchServe is installed, its own modules bring captum and more along: 40 MB and a second of each worker.
    """
    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))
    if manifest["model"]["handler"].removesuffix(".py") != OURS:
        return True
    own = (path for path in directory.glob("*.py") if path.stem != OURS)
    return any(re.search(r"^\s*(?:from|import)\s+ts\b", path.read_text("utf-8", "replace"), re.MULTILINE) for path in own)


class Service:
    """A loaded handler."""

    def __init__(self, directory: Path, gpu: int | None, batch: int) -> None:
        import yaml  # noqa: PLC0415
        from ts.context import Context, RequestProcessor  # noqa: PLC0415

        manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))
        model = manifest["model"]
        config = yaml.safe_load((directory / model["configFile"]).read_text("utf-8")) if model.get("configFile") else {}
        self._processor = RequestProcessor
        self._metrics = Metrics(model["modelName"], directory)
        self._context = Context(
            model["modelName"], str(directory), manifest, batch, gpu, "0.12.0", True, self._metrics, config or {}
        )
        self._handle, initialize = find_entry(model["handler"])
        if initialize is not None:
            initialize(self._context)
        ours = hasattr(getattr(self._handle, "__self__", None), "face")  # it parses long JSON within its allowance of work
        self._most_json = LONG_JSON if ours else sys.maxsize

    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """Answer a batch; what the handler raises fails all of it, as in TorchServe."""
        ids = {index: str(headers.get("x-request-id") or f"request-{index}") for index, (_, headers) in enumerate(batch)}
        self._context.request_ids = self._metrics.request_ids = ids
        self._context.request_processor = [self._processor(Headers(headers)) for _, headers in batch]
        try:
            bodies = self._handle([parse_json(*asked, self._most_json) for asked in batch], self._context)
        except MemoryError:
            logger.exception("out of memory")
            return [failure(507, "OutOfMemory", "Out of resources")] * len(batch)
        except Exception as error:
            logger.exception("the handler failed")
            if hasattr(error, "error_code") and hasattr(error, "message"):
                return [failure(int(error.error_code), "InternalServerException", str(error.message))] * len(batch)
            if "CUDA" in str(error):
                return [failure(507, "OutOfMemory", "Out of resources")] * len(batch)
            return [failure(503, "InternalServerException", "Prediction failed")] * len(batch)
        if not isinstance(bodies, list) or len(bodies) != len(batch):
            kind = f"{len(bodies)} answers" if isinstance(bodies, list) else type(bodies).__name__
            logger.error("the handler returned %s for a batch of %d", kind, len(batch))
            return [failure(503, "InternalServerException", "Invalid model predict output")] * len(batch)
        return [self._encode(index, body) for index, body in enumerate(bodies)]

    @property
    def face(self) -> Any:
        """The archive's model as `camserve.Model`; None where its handler is another's, or an older one."""
        return getattr(getattr(self._handle, "__self__", None), "face", None)

    def _encode(self, index: int, body: Any) -> Answered:
        headers = dict(self._context.get_response_headers(index))
        content_type = headers.pop("content-type", "")
        status, _ = self._context.get_response_status(index)
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, (bytes, bytearray)):
            try:
                body = json.dumps(body, indent=2).encode()
            except TypeError:
                logger.exception("the handler's answer cannot be written as JSON")
                return failure(503, "InternalServerException", "Unsupported model output data type.")
        return int(status or 200), str(content_type), {str(name): str(value) for name, value in headers.items()}, bytes(body)


class Measuring:
    """Measures every answer, with the archive's own camserve, where that `works`: its handler and its camserve can."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._observed: list[Any] = []
        self.works = service.face is not None and self._start()

    def measure(self, batch: Sequence[Asked]) -> tuple[list[Answered], list[Any] | None]:
        """Answer a batch; of each answer (target, reason, values, map), or None where its maps were not made."""
        self._observed.clear()
        answers = self._service.answer(batch)
        if not self.works:
            return answers, None
        by_call: dict[int, Any] = {}
        if self._observed:
            found = self._measure(self._observed, self._service.face.scale)
            for place, each in enumerate(self._observed):
                values = {name: float(several[place]) for name, several in found.values.items()}
                by_call[each.call] = (found.targets[place], found.reasons[place], values, each.maps[0])
        return answers, [by_call.get(place) for place in range(len(batch))]

    def describe(self) -> dict[str, Any]:
        """Say what a reference of these statistics holds for."""
        return {"provenance": dataclasses.asdict(self._service.face.provenance)} if self.works else {}

    def _start(self) -> bool:
        try:
            from camserve.explain.observer import NullObserver, Observation  # noqa: PLC0415 the archive's
            from camserve.monitoring.measure import measure  # noqa: PLC0415
        except ImportError:
            return False
        if "call" not in {each.name for each in dataclasses.fields(Observation)}:
            return False  # an older one does not say whose statistics they are
        observed = self._observed

        class All(NullObserver):
            def samples(self) -> bool:
                return True

            def observe(self, observation: Observation) -> None:
                observed.append(observation)

        self._measure = measure
        self._service.face.observe(All())
        return True


def failure(status: int, kind: str, message: str) -> Answered:
    """An error in the shape that clients know."""
    body = json.dumps({"code": status, "type": kind, "message": message}).encode()
    return status, "application/json", {}, body


def main(arguments: Sequence[str]) -> None:
    """Load the archive's handler and answer until the server closes the socket."""
    descriptor, folder, gpu, batch = arguments
    directory = Path(folder)
    sys.path[0] = str(directory)  # in place of this file's folder
    if importlib.util.find_spec("ts") is None or not needs_torchserve(directory):
        sys.path.insert(1, str(STAND_IN))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the server decides when to end
    connection = Connection(int(descriptor))
    try:
        service = Service(directory, int(gpu) if gpu else None, int(batch))
    except Exception as error:  # whatever a model raises while it loads
        logger.exception("the model does not load")
        connection.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())))
        return
    connection.send(("ready", None))
    measuring: Measuring | None = None
    while True:
        try:
            asked = connection.recv()
        except (EOFError, OSError):
            return
        if isinstance(asked, list):
            connection.send(service.answer(asked))
            continue
        measuring = measuring or Measuring(service)
        connection.send(measuring.describe() if asked[0] == "describe" else measuring.measure(asked[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
