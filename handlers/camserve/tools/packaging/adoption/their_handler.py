"""The handler of an archive that is served already: checks that camserve can explain beside it, and writes the file that does."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from ts.torch_handler.image_classifier import ImageClassifier
from ts.utils.util import list_classes_from_module

from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.survey.layout import synthesize_pictures
from camserve.core.text import in_one_line, join_names
from camserve.pictures.preprocess import Preprocess
from camserve.tools.archive.fresh.modules import Beside, server_modules
from camserve.tools.console import ToolError
from gradcam_handler import GradCAMHandler

STOCK = "image_classifier"
OURS = "gradcam_handler"
WRAPPER = "explained_handler"

PROBE = 224
"""The side, in pixels, of pictures for a graph that takes any."""

UNCALLED = ("inference", "explain_handle")
"""Steps of TorchServe's handlers that camserve's handler never calls: it runs the model once, for both answers."""

ACCEPTED = (
    "accepted is a file with one class that subclasses TorchServe's ImageClassifier or gradcam_handler.GradCAMHandler, and may "
    "override preprocess, postprocess and image_processing"
)

TEMPLATE = '''\
"""{theirs}, which answers predictions as before, with explanations."""

from {module} import {theirs}
from gradcam_handler import GradCAMHandler
from PIL import Image


class Explained{theirs}({theirs}, GradCAMHandler):
    """What {theirs} overrides stays in force; the rest is camserve's."""
'''

ALONE = '''\
"""{theirs}, alone in its file: TorchServe takes no handler from a file that defines several classes."""

from {module} import {theirs}


class Explained{theirs}({theirs}):
    """{theirs} itself."""
'''


@dataclass(frozen=True)
class AdoptedHandler:
    """The handler of an archive that is served already, as the new archive takes it.

    Attributes:
        file: its file in the new archive; None: camserve's own handler takes its place.
        processing: its own `image_processing`; None: it has the stock one.
        size: the (height, width), in pixels, that `processing` makes of a picture.
        channels: how many it makes.
        title: where its class stands, in words.
        prepares: the step of its own that prepares pictures; "" for none.
        notes: what the user should hear.
    """

    file: Path | None = None
    processing: Callable[[Image.Image], Tensor] | None = None
    size: tuple[int, int] | None = None
    channels: int = 3
    title: str = ""
    prepares: str = ""
    notes: tuple[str, ...] = ()


def adopt_handler(name: str, stage: Path, workdir: Path, graph: GraphModule | None = None) -> AdoptedHandler:
    """Takes the handler that a manifest calls `name`, as TorchServe finds it: a file of `stage`, or one that TorchServe brings.

    Where it needs a file of its own, that is written into `workdir`; one that explains already is moved there. It may import
    what lies in either folder.

    Args:
        graph: the archive's model, where that is an ONNX graph; TorchServe's own handlers make a session of it and cannot run
            that, so a handler of theirs may do so in its inference().

    Raises:
        ToolError: it is no image classifier, or some of its code would never be called, or would take the batch itself.
    """
    place, _, function = name.partition(":")
    module = place.rpartition("/")[2].removesuffix(".py")
    path = stage / f"{module}.py"
    if module == OURS or (module == STOCK and not path.is_file()):
        return AdoptedHandler()
    if not path.is_file():
        raise ToolError(f"the handler {name} is none of image classification, nor a file of the archive; {ACCEPTED}")
    with Beside([stage, workdir], server_modules()):
        try:
            loaded = import_module(module)
        except Exception as error:
            raise ToolError(f"the handler {name} does not load: {in_one_line(error)}") from error
        theirs = _find_class(loaded, name)
        entry = hasattr(loaded, function or "handle")  # where there is a function of that name, TorchServe calls it
        explains = issubclass(theirs, GradCAMHandler)
        if entry and (function or not explains):
            raise ToolError(
                f"the handler {name} is the function {function or 'handle'}() of {path.name}, which takes the batch "
                f"before camserve can; let its class {theirs.__name__} answer: {ACCEPTED}"
            )
        runs = graph is not None and not entry and _runs_alone(theirs, graph)
        if not entry:
            _check_steps(theirs, path.name, ("explain_handle",) if runs else UNCALLED)
        alone = entry or len(list_classes_from_module(loaded)) == 1
        file = _place_file(theirs, path, workdir, moved=explains and alone)
        processing, channels, size = _find_processing(theirs, path.name)
        own = inspect.getattr_static(theirs, "preprocess") is not inspect.getattr_static(ImageClassifier, "preprocess")
        prepares = "preprocess" if own else "image_processing" if processing else ""
        told = f"{theirs.__name__}.inference() gives the graph's own scores, by trial; camserve runs the graph itself"
        title, notes = f"{path.name}'s class {theirs.__name__}", (told,) if runs else ()
        return AdoptedHandler(file, processing, size, channels, title, prepares, notes)


def _find_class(loaded: ModuleType, name: str) -> type:
    """Finds the one image classifier of a handler's file; a class that another of them builds on does not count."""
    handlers = [each for each in list_classes_from_module(loaded) if issubclass(each, ImageClassifier)]
    last = [each for each in handlers if not any(other is not each and issubclass(other, each) for other in handlers)]
    if not last:
        raise ToolError(
            f"the handler {name} defines no image classifier (a subclass of ImageClassifier in that file itself); {ACCEPTED}"
        )
    if len(last) > 1:
        names = join_names(each.__name__ for each in last)
        raise ToolError(f"the handler {name} defines {len(last)} image classifiers, {names}; {ACCEPTED}")
    theirs: type = last[0]
    return theirs


def _runs_alone(theirs: type, graph: GraphModule) -> bool:
    """Tells by trial whether their own inference() gives the graph's scores `[N, K]`, as a tensor, and nothing else."""
    if _find_override(theirs, "inference", GradCAMHandler if issubclass(theirs, GradCAMHandler) else ImageClassifier) is None:
        return False
    import onnxruntime  # noqa: PLC0415 an extra

    pictures = synthesize_pictures(graph.size or (PROBE, PROBE), graph.given.shape[0] or 2 if graph.given.shape else 2)
    try:
        session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
        wanted = torch.from_numpy(session.run(None, {graph.given.name: pictures.numpy()})[0])
        handler: Any = theirs()
        handler.model, handler.device, handler.map_location = session, torch.device("cpu"), "cpu"
        found = handler.inference(pictures)
    except Exception:  # noqa: BLE001 whatever their code raises: it does not give the scores
        return False
    return isinstance(found, Tensor) and found.shape == wanted.shape and torch.allclose(found.float(), wanted, atol=1e-6)


def _check_steps(theirs: type, file: str, uncalled: Sequence[str] = UNCALLED) -> None:
    """Refuses a handler that takes the batch itself, or overrides a step that is never called, wherever it inherits that from."""
    explains = issubclass(theirs, GradCAMHandler)
    base = GradCAMHandler if explains else ImageClassifier
    taking = _find_override(theirs, "handle", base)
    if taking and explains:
        return  # it is called, as it was before, and may call any step; the check in a fresh process sees that it explains
    if taking:
        raise ToolError(
            f"{theirs.__name__} in {file} has a handle() of its own{_name_owner(taking, theirs)}, which takes the batch before "
            f"camserve can; {ACCEPTED}"
        )
    for step in uncalled:
        owner = _find_override(theirs, step, base)
        if owner:
            raise ToolError(
                f"{theirs.__name__} in {file} has {step}() of its own{_name_owner(owner, theirs)}, which would never be called: "
                f"camserve runs the model itself, once for predictions and explanations; what it does belongs into postprocess() "
                f"or into the model's file; {ACCEPTED}"
            )


def _find_override(theirs: type, step: str, base: type) -> type | None:
    """Finds the class, among all that `theirs` inherits from, whose method stands in for the one of `base`."""
    if inspect.getattr_static(theirs, step) is inspect.getattr_static(base, step):
        return None
    return next(each for each in theirs.__mro__ if step in vars(each))


def _name_owner(owner: type, theirs: type) -> str:
    return "" if owner is theirs else f", of {owner.__name__} in {owner.__module__}"


def _place_file(theirs: type, path: Path, workdir: Path, *, moved: bool) -> Path:
    """Puts the new archive's handler into `workdir`: their file, or one that makes a class of theirs and camserve's."""
    if moved:
        return Path(shutil.move(path, workdir / path.name))
    wrapper = workdir / f"{WRAPPER}.py"
    if (path.parent / wrapper.name).exists():
        raise ToolError(f"the archive holds a file {wrapper.name}, and packaging writes one of that name itself; rename it")
    text = ALONE if issubclass(theirs, GradCAMHandler) else TEMPLATE
    wrapper.write_text(text.format(module=path.stem, theirs=theirs.__name__))
    return wrapper


def _find_processing(theirs: Any, file: str) -> tuple[Callable[[Image.Image], Tensor] | None, int, tuple[int, int] | None]:
    """Their own preprocessing, and the channels and (height, width), in pixels, that it makes; None for the stock one."""
    try:
        handler = theirs()
        own = handler.image_processing
        if own is ImageClassifier.image_processing:
            return None, 3, None
        channels, height, width = Preprocess.from_callable(own).input_shape(256, 256)
    except Exception as error:
        raise ToolError(f"the image_processing of {theirs.__name__} in {file} takes no picture: {in_one_line(error)}") from error
    if "image_processing" in vars(handler):
        raise ToolError(
            f"{theirs.__name__} in {file} sets image_processing in its __init__, where camserve would not find it; make it an "
            "attribute or a method of the class"
        )
    return own, channels, (height, width)
