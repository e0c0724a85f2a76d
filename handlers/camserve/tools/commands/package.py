"""Makes an archive (.mar) of a model: weights, handler and configuration in one file that any TorchServe 0.12 serves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from camserve.core.errors import ConfigError
from camserve.tools.console import Progress, ToolError, command_of, fail, report_unforeseen
from camserve.tools.packaging.flags.package import STORE, Options, parse, parser

__all__ = ["main", "parse", "parser"]


def main(argv: Sequence[str]) -> int:
    """Packages what `argv` asks for; the exit status."""
    progress = Progress()
    try:
        options = parse(argv)
        from camserve.tools.packaging.packager import package  # noqa: PLC0415 torch takes seconds, and help does without it

        _report(package(options, progress), options, progress)
    except (ToolError, ConfigError) as error:
        return fail(error)
    except Exception as error:  # noqa: BLE001 the model, its file and a handler's may raise anything
        return report_unforeseen(error)
    return 0


def _report(target: Path, options: Options, progress: Progress) -> None:
    store = "" if options.export_path == STORE else f" --model-store {shlex.quote(str(options.export_path))}"
    url = f"http://127.0.0.1:8080/explanations/{target.stem}"
    progress.note(f"  serve it:  {command_of('serve')} --models {target.stem}{store}")
    if options.keys.get("channels", 3) not in (1, 3):
        progress.note(f"  ask it:    curl -T tensor.npy {url}")
        return
    from camserve.tools.packaging.models.demo import examples_folder  # noqa: PLC0415 as above

    picture = shlex.quote(os.path.relpath(examples_folder() / "cat.jpg"))
    progress.note(f"  ask it:    curl -T {picture} {url}")
    progress.note(f"             curl -T {picture} {url} -H 'Accept: image/png' -o heat.png")
