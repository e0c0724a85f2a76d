"""Takes an archive that is served already, and says what of it goes into the one that explains."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from ts.torch_handler.image_classifier import ImageClassifier
from ts.utils.util import list_classes_from_module

from camserve.images import Preprocess
from camserve.tools import sources, staging
from camserve.tools.archive import Archive
from camserve.tools.bundle import SKIPPED
from camserve.tools.console import ToolError
from camserve.tools.fresh.modules import Beside, server_modules
from camserve.tools.fresh.worker import words
from gradcam_handler import GradCAMHandler

STOCK = "image_classifier"
OURS = "gradcam_handler"
WRAPPER = "explained_handler"
OWN_FOLDERS = ("MAR-INF", "camserve", "licenses", "__pycache__")
IN_THE_WAY = ("handle", "inference", "explain_handle")
"""Methods of a handler's own that would take the batch before camserve can."""

TEMPLATE = '''\
"""{theirs}, which answers predictions as before, with explanations."""

from {module} import {theirs}
from gradcam_handler import GradCAMHandler
from PIL import Image


class Explained{theirs}({theirs}, GradCAMHandler):
    """What {theirs} overrides stays in force; the rest is camserve's."""
'''


@dataclass(frozen=True)
class Existing:
    """What an archive brings: the model, its settings, its labels, and a handler of its own (None: camserve's)."""

    source: sources.Source
    name: str
    version: str
    settings: Mapping[str, Any]
    explain: Mapping[str, Any]
    labels: Mapping[str, str] | None
    handler: Path | None


def read(archive: Archive, workdir: Path, stage: Path) -> Existing:
    """Reads an unpacked archive; its extra files are copied into `stage`, a handler that wraps theirs into `workdir`.

    Raises:
        ToolError: its handler is no image classifier, or takes the batch itself; or its model cannot be loaded.
    """
    model = archive.manifest["model"]
    folder = archive.directory
    known = [model.get(key) for key in ("modelFile", "serializedFile", "configFile")]
    for path in sorted(folder.iterdir()):
        if path.name in OWN_FOLDERS or path.name in known or path.name in (f"{OURS}.py", f"{WRAPPER}.py", staging.LABELS):
            continue
        if path.is_dir():
            shutil.copytree(path, stage / path.name, ignore=SKIPPED, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, stage / path.name)
    weights = folder / str(model.get("serializedFile"))
    if not weights.is_file():
        raise ToolError("the archive holds no weights (serializedFile), so there is nothing to explain")
    if model.get("modelFile"):
        model_file = shutil.copyfile(folder / model["modelFile"], workdir / model["modelFile"])
        source = sources.from_file(Path(model_file), weights, stage)
    else:
        source = sources.from_program(weights)
    labels = folder / staging.LABELS
    settings = {key: value for key, value in archive.config.items() if key != "explain"}
    return Existing(
        replace(source, licensed=()),
        archive.name,
        archive.version,
        settings,
        archive.config.get("explain") or {},
        staging.read_labels(labels) if labels.is_file() else None,
        _handler(str(model["handler"]), stage, workdir),
    )


def _handler(name: str, stage: Path, workdir: Path) -> Path | None:
    """The handler's file for the new archive; None: camserve's own will do."""
    if name.removesuffix(".py") in (STOCK, OURS, WRAPPER):
        return None
    path = stage / name
    if not path.is_file():
        raise ToolError(f"the archive's handler {name} is none of image classification; camserve explains image classifiers")
    module = path.stem
    with Beside([stage], server_modules()):
        try:
            found = list_classes_from_module(__import__(module))
        except Exception as error:
            raise ToolError(f"the archive's handler {name} does not load: {words(error)}") from error
    handlers = [each for each in found if issubclass(each, ImageClassifier)]
    if len(handlers) != 1:
        raise ToolError(f"the archive's handler {name} defines no image classifier (a subclass of ImageClassifier)")
    theirs = handlers[0]
    if issubclass(theirs, GradCAMHandler):
        moved = workdir / name
        shutil.move(path, moved)
        return moved
    taken = [method for method in IN_THE_WAY if method in vars(theirs)]
    if taken:
        raise ToolError(
            f"{theirs.__name__} in {name} has a {taken[0]}() of its own, which takes the batch before camserve can; let it "
            "override preprocess, postprocess or image_processing, or make it a subclass of gradcam_handler.GradCAMHandler"
        )
    wrapper = workdir / f"{WRAPPER}.py"
    wrapper.write_text(TEMPLATE.format(module=module, theirs=theirs.__name__))
    return wrapper


def own_size(handler: Path, stage: Path) -> tuple[int, int] | None:
    """The (height, width) that a handler's own `image_processing` makes of a picture; None: it has the stock one."""
    with Beside([handler.parent, stage], server_modules()):
        (found,) = [each for each in list_classes_from_module(__import__(handler.stem)) if issubclass(each, ImageClassifier)]
    if found.image_processing is ImageClassifier.image_processing:
        return None
    height, width = Preprocess.from_callable(found.image_processing)(Image.new("RGB", (256, 256))).shape[1:]
    return height, width
