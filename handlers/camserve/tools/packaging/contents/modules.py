"""Carries the modules that a model's file needs and TorchServe does not bring into an archive, with their licences."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from camserve.tools.archive import fresh_process
from camserve.tools.archive.fresh.modules import canonical
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import SKIPPED
from camserve.tools.packaging.contents.requirements import require_distributions

LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")


class UncarriedError(ToolError):
    """A model needs a module that an archive cannot carry; `why` says which and why not, the message also what to do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}; {remedy}")
        self.why = why


def find_needed_modules(
    model_file: Path,
    staging: Path,
    requirements: Path | None = None,
    *,
    beside: Path | None = None,
    shape: Sequence[int] = (),
) -> dict[str, Path]:
    """Finds name and file of each module to bundle, by building and running the model in a process of its own.

    What a library only tries to import is bundled where the model fails without it, and not because it is installed here.

    Args:
        staging: holds what goes into the archive anyway.
        requirements: what it names TorchServe installs.
        beside: a further folder whose modules the model's file imports.
        shape: of the model's input, `[n, channels, height, width]`; empty: the model is built, and does not run.

    Raises:
        UncarriedError: it needs a module that an archive cannot carry.
        ToolError: the file does not load.
    """
    request: dict[str, Any] = {
        "model_file": str(model_file.resolve()),
        "folders": [str(each.resolve()) for each in (staging, beside) if each],
        "requirements": str(requirements.resolve()) if requirements else "",
        "shape": list(shape),
        "wanted": [],
    }
    while True:
        needs = fresh_process.run_fresh("needs", json.dumps(request))
        more = needs["blamed"] or needs["withheld"] if "error" in needs else ()
        if not more:
            break
        request["wanted"] += more
    if "error" in needs:
        refused: Mapping[str, str] = needs["refused"]
        for name, reason in refused.items():
            if re.search(rf"\b{re.escape(name)}\b", needs["error"]):
                raise _refuse(model_file, name, needs["roots"][name], reason)
        raise ToolError(f"{model_file} does not load: {needs['error']}")
    return {name: Path(origin) for name, origin in needs["modules"].items()}


def _refuse(model_file: Path, name: str, root: str, reason: str) -> UncarriedError:
    through = name if name == root else f"{root}, which needs {name}"
    lines = require_distributions([root]) or [root]
    return UncarriedError(
        f"{model_file.name} needs {through}, which {reason} and cannot be carried in an archive, and TorchServe's own "
        "environment does not bring it",
        f"write {', '.join(lines)} into a file and give that with --requirements: TorchServe then installs it, where its "
        "configuration has install_py_dep_per_model=true",
    )


def copy_modules(modules: Mapping[str, Path], staging: Path) -> list[str]:
    """Copies modules into `staging`; returns the distributions that they come from."""
    by_module = metadata.packages_distributions()
    distributions: list[str] = []
    for name, origin in modules.items():
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, staging / name, ignore=SKIPPED, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(origin, staging / origin.name)
        distributions += by_module.get(name, [])
    return distributions


def copy_licences(distributions: Iterable[str], staging: Path) -> None:
    """Puts each distribution's licence files into `licenses/NAME-VERSION/`; where it has none, what its metadata says."""
    for name in dict.fromkeys(distributions):
        distribution = metadata.distribution(name)
        folder = staging / "licenses" / f"{canonical(name)}-{distribution.version}"
        folder.mkdir(parents=True, exist_ok=True)
        files = [file for file in distribution.files or () if file.name.upper().startswith(LICENCE_FILES)]
        texts = [Path(str(file.locate())) for file in files if file.suffix not in (".py", ".pyc")]
        for path in texts:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        if not any(folder.iterdir()):
            fields = (
                distribution.metadata.get_all("License-Expression") or distribution.metadata.get_all("License") or ["unknown"]
            )
            text = f"{name} {distribution.version} has no licence file. Its metadata says: {', '.join(fields)}\n"
            (folder / "LICENSE").write_text(text, "utf-8")
