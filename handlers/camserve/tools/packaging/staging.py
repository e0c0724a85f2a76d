"""Puts an archive's files together, runs torch-model-archiver on them, and explains a picture from what comes out."""

from __future__ import annotations

import filecmp
import glob
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from ts.utils.util import load_label_mapping

import camserve
from camserve.core.config import Config
from camserve.tools.archive.archive import open_archive
from camserve.tools.archive.fresh.modules import top_modules
from camserve.tools.console import ToolError
from camserve.tools.packaging.bundle import SKIPPED, in_fresh_process
from camserve.tools.packaging.sources import Source, check_module_name

WEIGHTS = "weights.pth"
PROGRAM = "model.pt"
CONFIG = "model-config.yaml"
LABELS = "index_to_name.json"
OWN = ("camserve", "gradcam_handler.py", "licenses", "MAR-INF", WEIGHTS, PROGRAM, CONFIG, LABELS)
"""Names in an archive's root that packaging itself writes."""


def copy_extra_files(patterns: Iterable[str], staging: Path) -> None:
    """Copies files, wildcards' matches, and folders' contents into `staging`, as torch-model-archiver would.

    Raises:
        ToolError: nothing there, a name that packaging needs itself, or a module that would hide another in the worker.
    """
    for pattern in filter(None, map(str.strip, patterns)):
        matches = sorted(glob.glob(pattern))  # noqa: PTH207 patterns may be absolute
        found = [Path(each) for each in matches or [pattern]]
        for path in [item for each in found for item in (sorted(each.iterdir()) if each.is_dir() else [each])]:
            if path.name in OWN:
                hint = "; give labels with --labels" if path.name == LABELS else ""
                raise ToolError(f"--extra-files {pattern}: packaging writes {path.name} itself{hint}")
            if not path.exists():
                raise ToolError(f"--extra-files {pattern}: there is nothing of that name")
            if (staging / path.name).exists():
                raise ToolError(f"--extra-files {pattern}: two of the files are named {path.name}")
            if path.is_dir():
                shutil.copytree(path, staging / path.name, ignore=SKIPPED, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(path, staging / path.name)
    for name in top_modules(staging):
        check_module_name(name, staging / name)


def copy_package(staging: Path) -> Path:
    """Copies the package without its tools, and the project's licence, into `staging`; returns the handler's file."""
    package = Path(camserve.__file__).parent
    shutil.copytree(package, staging / "camserve", ignore=_without_tools(package), copy_function=shutil.copyfile)
    repository = package.parents[1] / "LICENSE"
    licences = [repository, *package.parent.glob("camserve-*.dist-info/licenses/LICENSE")]
    folder = staging / "licenses" / f"camserve-{camserve.__version__}"
    for licence in [each for each in licences if each.is_file()][:1]:
        folder.mkdir(parents=True)
        shutil.copyfile(licence, folder / "LICENSE")
    handler = find_spec("gradcam_handler")
    if handler is None or handler.origin is None:
        raise ToolError("gradcam_handler.py is not beside the package camserve; install the project again")
    return Path(handler.origin)


def _without_tools(package: Path) -> Any:
    def ignored(folder: str, names: list[str]) -> set[str]:
        return set(SKIPPED(folder, names)) | ({"tools"} & set(names) if Path(folder) == package else set())

    return ignored


def write_settings(folder: Path, settings: Mapping[str, Any], explain: Mapping[str, Any]) -> Path:
    """Writes `model-config.yaml`: TorchServe's own settings, and the `explain:` section."""
    path = folder / CONFIG
    path.write_text(yaml.safe_dump({**settings, "explain": dict(explain)}, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """TorchServe's settings of a `model-config.yaml`, and its `explain:` section, neither of them checked.

    Raises:
        ToolError: no such file, or not such a mapping.
    """
    if not path.is_file():
        raise ToolError(f"--config: there is no file {path}")
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ToolError(f"--config {path}: it is not YAML: {' '.join(str(error).split())}") from error
    explain = found.get("explain") or {} if isinstance(found, dict) else None
    if not isinstance(explain, dict):
        wanted = "expected a mapping of TorchServe's settings, with a mapping `explain:` of camserve's keys or without"
        raise ToolError(f"--config {path}: {wanted}")
    return {str(key): value for key, value in found.items() if key != "explain"}, explain


def read_labels(path: Path) -> dict[str, str]:
    """Index and name of each class, in any of the forms that TorchServe's stock handlers take.

    Raises:
        ToolError: no such file, or not labels.
    """
    if not path.is_file():
        raise ToolError(f"--labels: there is no file {path}")
    try:
        return {str(index): str(name) for index, name in load_label_mapping(str(path)).items()}
    except Exception as error:  # that function raises bare exceptions
        raise ToolError(f'--labels {path}: expected {{"0": "tench", ...}}: {error}') from error


def write_labels(staging: Path, labels: Mapping[str, str]) -> None:
    """Writes `index_to_name.json`."""
    (staging / LABELS).write_text(json.dumps(dict(labels), ensure_ascii=False, indent=0) + "\n", "utf-8")


@dataclass(frozen=True)
class Parts:
    """What an archive holds besides its model: a folder of files, the handler, the settings, and a file of requirements."""

    folder: Path
    handler: Path
    settings: Path
    requirements: Path | None = None


def build(source: Source, parts: Parts, *, name: str, version: str) -> Path:
    """Runs torch-model-archiver with a temporary folder of its own (it deletes what it finds there); the archive's path.

    The archive lies beside the folder of `parts`.

    Raises:
        ToolError: two files of one name; or, in the archiver's own words, why it failed.
    """
    staging, settings = parts.folder, parts.settings
    name_in_archive = source.stored_as or (WEIGHTS if source.model_file else PROGRAM)
    weights, store, temporary = settings.with_name(name_in_archive), staging.with_name("built"), staging.with_name("archiver")
    if source.weights is None:
        torch.save(source.model.state_dict(), weights)
    else:
        shutil.copyfile(source.weights, weights)
    _check_names([weights, settings, parts.handler, *([source.model_file] if source.model_file else [])], staging)
    store.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", name, "--version", version]
    command += ["--model-file", str(source.model_file.resolve())] if source.model_file else []
    command += ["--serialized-file", str(weights), "--handler", str(parts.handler), "--extra-files", str(staging)]
    command += ["--requirements-file", str(parts.requirements)] if parts.requirements else []
    command += ["--config-file", str(settings), "--export-path", str(store), "--archive-format", "zip-store"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, env=environment, cwd=temporary, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"torch-model-archiver failed: {' '.join(done.stderr.split()[-40:])}")
    return store / f"{name}.mar"


def _check_names(files: Sequence[Path], staging: Path) -> None:
    """Refuses a file of `staging` that would take the place of another one: the archiver copies them last."""
    names = [file.name for file in files]
    for file in files:
        beside = staging / file.name
        if names.count(file.name) > 1 or beside.is_dir() or (beside.exists() and not filecmp.cmp(file, beside, shallow=False)):
            raise ToolError(f"the archive would hold two files of the name {file.name}, which packaging needs; rename one")


def explain_once(archive: Path, config: Config) -> dict[str, Any]:
    """The answer to one explanation by the finished archive, in a fresh process that has only TorchServe's environment.

    Raises:
        ToolError: in the worker's own words, why there is none.
    """
    with open_archive(archive) as opened, tempfile.NamedTemporaryFile(prefix="camserve-") as picture:
        picture.write(_picture(config))
        picture.flush()
        found = in_fresh_process("explain", str(opened.directory), picture.name)
    if "error" in found:
        raise ToolError(f"the archive does not work in a fresh process: {found['error']}")
    answer = json.loads(found["body"]) if found["status"] == 200 else found["body"]
    if not isinstance(answer, dict) or not answer.get("explanations"):
        raise ToolError(f"the archive does not explain a picture in a fresh process: {found['status']} {found['body']}")
    return answer


def _picture(config: Config) -> bytes:
    """A picture that the archive accepts: of one of its formats, and within its limit."""
    side = min(256, math.isqrt(config.max_pixels))
    across = np.linspace(0, 6, side)
    waves = np.stack([np.sin(across[:, None] * k + across[None, :]) for k in (1, 2, 3)], axis=2)
    file = io.BytesIO()
    Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8)).save(file, config.formats[0])
    return file.getvalue()


def put(archive: Path, target: Path) -> None:
    """Writes the archive to its place in one step, so that no server ever sees half of it."""
    part = target.with_suffix(f".{os.getpid()}.part")
    try:
        shutil.copyfile(archive, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
