"""Loads an archive as TorchServe's worker does. As a program of its own it proves that the archive needs nothing else.

    needs RESULT MODEL_FILE STAGING     which modules a model's file needs
    explain RESULT DIRECTORY PICTURE    one explanation from an unpacked archive

`bundle.in_fresh_process` runs them. Both hide every module that TorchServe's own environment does not bring, and write their
findings as JSON to RESULT.
This file imports the standard library only: what it loads must come from the archive, never from beside this file.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import importlib
import json
import re
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType
from typing import Any

SERVER = (
    "torch", "torchvision", "torchserve", "captum", "numpy", "pillow", "pyyaml",
    "opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
"""The distributions of TorchServe's own environment; whatever they require belongs to it."""


def canonical(name: str) -> str:
    """A distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def server_modules() -> frozenset[str]:
    """Top-level modules that TorchServe's own environment brings, the standard library included."""
    from packaging.requirements import Requirement  # itself one of them

    wanted = [(name, "") for name in SERVER]
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        if (canonical(name), extra) in seen:
            continue
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        seen.add((canonical(name), extra))
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                wanted += [(each.name, chosen) for chosen in ("", *each.extras)]
    brought = {name for name, _ in seen}
    packages = metadata.packages_distributions().items()
    modules = {module for module, names in packages if brought & {canonical(name) for name in names}}
    library = top_modules(Path(json.__file__).parents[1])  # more than sys.stdlib_module_names: sysconfig's data
    return frozenset(modules | library | set(sys.stdlib_module_names) | {"__main__"})


class Hiding(MetaPathFinder):
    """Takes the place of this process's finders: a top-level module that is not `visible` is not found."""

    def __init__(self, visible: Callable[[str], bool]) -> None:
        self.visible = visible
        self.finders = list(sys.meta_path)
        sys.meta_path[:] = [self]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec, by the finders that stood here before."""
        if path is None and not self.visible(name):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *arguments: Any, **options: Any) -> Iterable[metadata.Distribution]:
        """Installed distributions, as `importlib.metadata` asks for them."""
        return metadata.MetadataPathFinder.find_distributions(*arguments, **options)


class Beside(MetaPathFinder):
    """Finds the modules that lie in `folders`, before any other of their names but those of TorchServe's environment.

    As a context manager it is in force within the block, and forgets what was loaded there.
    """

    def __init__(self, folders: Sequence[Path], server: Collection[str]) -> None:
        self.folders = {name: str(each) for each in reversed(folders) for name in top_modules(each).difference(server)}

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: Any = None) -> ModuleSpec | None:
        """The spec of a top-level module in one of the folders."""
        return PathFinder.find_spec(name, [self.folders[name]]) if path is None and name in self.folders else None

    def __enter__(self) -> None:
        drop(self.folders)
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        drop(self.folders)


def drop(modules: Collection[str]) -> None:
    """Forgets these top-level modules and all in them, so that they are loaded anew."""
    for name in [each for each in sys.modules if each.partition(".")[0] in modules]:
        del sys.modules[name]


def top_modules(directory: Path) -> set[str]:
    """Names of the modules and packages in a folder."""
    return {path.stem for path in directory.glob("*.py")} | {path.parent.name for path in directory.glob("*/*.py")}


def place(module: Any) -> Path:
    """The file or folder that a module was loaded from."""
    return Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "/")).resolve()


@dataclass
class Needs:
    """Watches the imports of a model's file; `modules` may be bundled, `refused` may not, with the reason."""

    own: set[str]
    server: frozenset[str]
    find: Callable[[str], ModuleSpec | None]
    modules: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def visible(self, name: str) -> bool:
        """Records a module that the model's file, or what it needs, imports. Optional imports of torch's own stay hidden."""
        if name in self.server or name in self.own or name in self.modules:
            return True
        if importer(sys._getframe(1)) not in self.own.union(self.modules):
            return False
        spec = self.find(name)
        if spec is None:
            return False
        reason = unfit(spec)
        if reason:
            self.refused[name] = reason
            return False
        self.modules.append(name)
        return True


def importer(frame: FrameType | None) -> str:
    """The top-level module whose import statement is being carried out."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in ("importlib", "_frozen_importlib", "_frozen_importlib_external", __name__):
            return name
        frame = frame.f_back
    return ""


def unfit(spec: ModuleSpec) -> str:
    """Why a module cannot be carried in an archive; empty if it can."""
    if spec.origin is None:
        return "is a package without __init__.py"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    suffixes = tuple(EXTENSION_SUFFIXES)
    if spec.origin.endswith(suffixes) or any(f.name.endswith(suffixes) for d in folders for f in d.rglob("*")):
        return "has compiled parts"
    return ""


def needs(model_file: str, staging: str) -> dict[str, Any]:
    """What the model's file imports beyond TorchServe's environment: `{"modules": {name: path}, "refused": {name: reason}}`.

    An error of the file itself is under `error`.
    """
    path, server = Path(model_file).resolve(), server_modules()
    beside = Beside([Path(staging), path.parent], server)

    def find(name: str) -> ModuleSpec | None:
        return beside.find_spec(name) or PathFinder.find_spec(name)

    found = Needs({path.stem} | top_modules(Path(staging)), server, find)
    sys.meta_path.insert(0, beside)
    Hiding(found.visible)
    result: dict[str, Any] = {}
    try:
        model_class(path.stem)()
    except Exception as error:  # noqa: BLE001 the model's file may raise anything
        result["error"] = words(error)
    modules = {name: spec.origin for name in found.modules if (spec := find(name))}
    return {**result, "modules": modules, "refused": found.refused}


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


def explain(directory: str, picture: str) -> dict[str, Any]:
    """One explanation of `picture` by the unpacked archive: `{"status", "body"}`, or `{"error"}` in the worker's own words."""
    folder = Path(directory).resolve()
    own, server = top_modules(folder), server_modules()
    sys.path.insert(0, str(folder))
    Hiding(lambda name: name in own or name in server)
    try:
        service = load_service(folder)
        (response,) = ask(service, [Row({"body": bytearray(Path(picture).read_bytes())}, explain=True)])
    except Exception as error:  # noqa: BLE001 the archive's handler may raise anything
        return {"error": words(error)}
    for name in sorted(own & set(sys.modules)):
        if not place(sys.modules[name]).is_relative_to(folder):
            return {"error": f"the module {name} was not loaded from the archive"}
    return {"status": response.status, "body": response.body.decode("utf-8", "replace")}


def main(arguments: Sequence[str]) -> None:
    """Runs one of the two programs."""
    program, result, *rest = arguments
    found = {"needs": needs, "explain": explain}[program](*rest)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[2:])
