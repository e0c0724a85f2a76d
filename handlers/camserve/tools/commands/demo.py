"""Packages a real classifier, serves it on this machine, explains a photograph of a cat, and keeps serving."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests
from rich.table import Table

import camserve
from camserve.core.errors import ConfigError
from camserve.tools.commands.serve import Server
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.packaging.flags.package import STORE, parse
from camserve.tools.packaging.models.demo import DEMO, examples_folder

DRAIN = 10.0
"""Seconds for which requests in flight may go on after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo until Ctrl-C; returns the exit status."""
    options = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options, Progress())
    except (ToolError, ConfigError) as error:
        return fail(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    command = argparse.ArgumentParser(prog=command_of("demo"), description=__doc__, allow_abbrev=False)
    command.add_argument("--once", action="store_true", help="stop after the picture")
    command.add_argument("--port", type=int, default=8080, help="port of the server; 0 picks a free one (%(default)s)")
    command.add_argument("--picture", type=Path, default=examples_folder() / "cat.jpg", metavar="FILE", help="what to explain")
    command.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where the overlay goes (%(default)s)")
    command.add_argument("--model-store", type=Path, default=STORE, metavar="DIR", help="where the archive goes (%(default)s)")
    return command


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Packages, serves, asks and shows.

    Raises:
        ToolError: a step failed, in words that say why.
    """
    if not options.picture.is_file():
        raise ToolError(f"--picture: there is no file {options.picture}")
    if options.picture.is_relative_to(Path.cwd()):
        options.picture = options.picture.relative_to(Path.cwd())
    progress.note("1. Package: EfficientNet-Lite0 with its ImageNet weights, into an archive for TorchServe")
    _package(options.model_store, progress)
    progress.note("2. Serve: TorchServe, on this machine only")
    with ExitStack() as stack:
        server = Server(options.model_store, [f"{DEMO}.mar"], port=options.port)
        with progress.step("Start TorchServe and load the model"):
            stack.enter_context(server)
        progress.note(f"   ready at {server.url}")
        try:
            progress.note(f"3. Ask: what is in {options.picture}, and where did the model look?")
            _show(server.url, options, progress)
            if not options.once:
                progress.note("Serving until Ctrl-C.")
                threading.Event().wait()
        except KeyboardInterrupt:
            progress.note("Stopping.")
            server.stop(DRAIN)


def _package(store: Path, progress: Progress) -> None:
    archive = store / f"{DEMO}.mar"
    if archive.is_file() and archive.stat().st_mtime > _newest_source():
        progress.note(f"   {archive} is there already, and up to date")
        return
    store.mkdir(parents=True, exist_ok=True)
    from camserve.tools.packaging.packager import package  # noqa: PLC0415 torch takes seconds, and help does without it

    package(parse(["--demo", "--force", "--export-path", str(store)]), progress)


def _newest_source() -> float:
    """Returns when the newest file that the archive is made from was changed."""
    folder = Path(camserve.__file__).parent
    kinds = ("py", "yaml", "html", "css", "js", "jpg")
    files = [file for kind in kinds for file in folder.rglob(f"*.{kind}")]
    files += [folder.parent / "gradcam_handler.py", *examples_folder().glob("*.py")]
    return max(file.stat().st_mtime for file in files)


def _show(url: str, options: argparse.Namespace, progress: Progress) -> None:
    address = f"{url}/explanations/{DEMO}"
    picture = options.picture.read_bytes()
    answer = _ask(address, picture, "application/json").json()
    explained = answer["explanations"][0]
    progress.console.print(_table(answer["classes"], explained["target"]))
    left, top, right, bottom = answer["image"]["view"]
    progress.note(
        f"   The heatmap of {explained['label']!r} covers what the model saw of the picture: from ({left:.0f}, {top:.0f}) to "
        f"({right:.0f}, {bottom:.0f}) of {answer['image']['width']}x{answer['image']['height']} pixels."
    )
    overlay = options.out / f"{options.picture.stem}-heatmap.png"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_bytes(_ask(address, picture, "image/png").content)
    progress.note(f"   The picture with its heatmap: {overlay}")
    if options.once:
        return
    progress.note(f"Open {address} in a browser: the inspector, for pictures of your own.")
    progress.note("Or ask from a shell:")
    for command in (
        f"curl -T {options.picture} {url}/predictions/{DEMO}",
        f"curl -T {options.picture} {address}",
        f"curl -T {options.picture} {address} -H 'Accept: image/png' -o heat.png",
    ):
        progress.note(f"   {command}")


def _ask(address: str, picture: bytes, accept: str) -> requests.Response:
    try:
        response = requests.put(address, data=picture, headers={"Accept": accept}, timeout=120)
    except requests.RequestException as error:
        raise ToolError(f"the server does not answer: {type(error).__name__}") from error
    if response.status_code != 200:
        raise ToolError(f"the server answered {response.status_code}: {response.text[:500]}")
    return response


def _table(classes: Sequence[Mapping[str, Any]], target: int) -> Table:
    table = Table("class", "index", "probability", "", box=None, padding=(0, 3, 0, 3))
    for each in classes:
        mark = "explained" if each["index"] == target else ""
        table.add_row(each["label"], str(each["index"]), f"{each['probability']:.3f}", mark)
    return table
