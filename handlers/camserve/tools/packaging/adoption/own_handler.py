"""A handler's file that is packaged with a model of its own flags, not with an archive that is served already."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.tools.console import ToolError
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler, adopt_handler
from camserve.tools.packaging.contents.names import check_module_name
from camserve.tools.packaging.models.advice import PREPARED
from camserve.tools.packaging.models.source import ModelSource


def check_handler_file(file: Path) -> None:
    """Refuses what is no Python file, before the work begins.

    Raises:
        ToolError: there is no such file, or TorchServe could not import it by its name.
    """
    if not file.is_file():
        raise ToolError(f"--handler: expected a Python file, and there is no file {file}; without --handler camserve's answers")
    if file.suffix != ".py":
        raise ToolError(f"--handler: expected a Python file, NAME.py, got {file.name}")
    check_module_name(file.stem, file)


def take_handler(file: Path, source: ModelSource, stage: Path, workdir: Path) -> tuple[ModelSource, AdoptedHandler]:
    """Takes a handler of the user's beside a model; where it prepares pictures, it does so in place of the model's own keys.

    Args:
        stage: files of the archive, which the handler may import.
        workdir: where the handler's file is put that the archive will name.

    Raises:
        ToolError: the archive holds a file of its name already, or camserve cannot explain beside it.
    """
    if (stage / file.name).exists():
        raise ToolError(f"--handler {file}: another file of the archive is named {file.name}; leave it out of --extra-files")
    shutil.copyfile(file, stage / file.name)
    handler = adopt_handler(file.name, stage, workdir, source.model if isinstance(source.model, GraphModule) else None)
    if handler.processing is not None:
        keys = {key: value for key, value in source.preprocessing.items() if key not in PREPARED}
        source = replace(source, preprocessing=keys, unprepared="")
    return source, handler
