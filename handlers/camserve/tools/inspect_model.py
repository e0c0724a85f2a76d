"""What can be explained here? Lists the layers of a model or an archive that have a map, and what each costs.

With --image, draws that picture's heatmaps by layer and by method on one contact sheet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table
from torch import Tensor

from camserve import render
from camserve.cam import METHODS
from camserve.capture import LayerInfo, synthetic_picture
from camserve.capture.backend import Backend, open_backend
from camserve.config import Config
from camserve.decode import open_picture
from camserve.errors import ConfigError, RequestError
from camserve.explainer import Explainer, Want
from camserve.geometry import Rect, input_size
from camserve.images import Preprocess
from camserve.tools import keys, sources
from camserve.tools.archive import load_service, open_archive
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.fresh import words

TABLE_WIDTH = 120
"""Characters that the table may take where there is no terminal to say."""

SHEET_SIDE = 224
"""Longest side of a picture on the contact sheet, in pixels."""


@dataclass(frozen=True)
class Subject:
    """A model, how pictures are prepared for it, and the (height, width) that it sees."""

    model: Any
    config: Config
    preprocess: Preprocess
    size: tuple[int, int]


def main(argv: Sequence[str]) -> int:
    """Inspects what `argv` names; the exit status."""
    options, progress = parser().parse_args(argv), Progress()
    try:
        with _subject(options) as subject:
            inspect(subject, options, progress)
    except (ToolError, ConfigError, OSError) as error:
        return fail(error)
    except RequestError as error:
        return fail(f"--image: {error.message}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog=command_of("inspect_model"), description=__doc__, allow_abbrev=False)
    made.add_argument("archive", nargs="?", type=Path, metavar="ARCHIVE.mar", help="an archive; or else a model:")
    made.add_argument("--torchvision", metavar="ARCH", help="a classifier of torchvision's, random weights unless --weights")
    made.add_argument("--model-file", metavar="FILE", type=Path, help="a file that defines one class without arguments")
    made.add_argument("--weights", metavar="FILE", type=Path, help="its state dict")
    made.add_argument("--depth", type=int, default=2, metavar="N", help="levels of names to list (%(default)s)")
    made.add_argument("--rounds", type=int, default=9, metavar="N", help="timed passes a layer (%(default)s)")
    made.add_argument("--image", type=Path, metavar="FILE", help="a picture for the contact sheet")
    made.add_argument("--out", type=Path, default=Path("out/layers.png"), metavar="FILE", help="the sheet (%(default)s)")
    keys.add_flags(made.add_argument_group("how a model (not an archive) is run: keys of its configuration"))
    return made


@contextmanager
def _subject(options: argparse.Namespace) -> Iterator[Subject]:
    named = [each for each in (options.archive, options.torchvision, options.model_file) if each]
    if len(named) != 1:
        raise ToolError("give one of ARCHIVE.mar, --torchvision ARCH and --model-file FILE")
    if options.archive:
        with open_archive(options.archive) as opened:
            yield _of_archive(opened.directory)
        return
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        yield _of_model(options, Path(folder))


def _of_archive(directory: Path) -> Subject:
    try:
        handler = load_service(directory)._entry_point.__self__
    except Exception as error:
        raise ToolError(f"the archive does not load: {words(error)}") from error
    if not hasattr(handler, "backend"):
        raise ToolError(f"its handler is not camserve's; {command_of('package')} --from-archive makes an archive that explains")
    size = tuple(handler.metadata["input_size"])
    return Subject(handler.model, handler.config, handler._preprocess_of(handler.config), size)


def _of_model(options: argparse.Namespace, workdir: Path) -> Subject:
    if options.torchvision:
        source = sources.from_torchvision(options.torchvision, workdir, options.weights, random=options.weights is None)
    elif options.weights:
        source = sources.from_file(options.model_file, options.weights, workdir)
    else:
        raise ToolError("--model-file needs --weights FILE")
    config = Config.from_mapping({**source.preprocessing, **keys.given_keys(options)})
    return Subject(source.model, config, Preprocess(config), input_size(256, 256, config.resize, config.crop))


def inspect(subject: Subject, options: argparse.Namespace, progress: Progress) -> None:
    """Prints the table, and draws the sheet where a picture is given."""
    device = torch.device("cpu")
    config = replace(subject.config, layers=(), channels_last=False)
    with progress.step("Run the model once to find its layers"):
        picked = open_backend(subject.model, config, subject.size, device)
    shown = _shown(picked, subject.config.layers, options.depth)
    backend, refused = _usable(subject, config, shown, device)
    costs = _costs(backend, subject.size, options.rounds)
    _print(picked, [info for info in shown if info.name in backend.layers], costs, subject.size, progress)
    for name, why in refused.items():
        progress.note(f"  {name}: {why}")
    progress.note(f"The rule picks {picked.layers[0]}: {picked.why}")
    if len(picked.maps) > len(shown):
        progress.note(f"{len(picked.maps) - len(shown)} deeper layers are not listed; --depth {options.depth + 1} lists more")
    if options.image:
        sheet = contact_sheet(subject, backend, device, options.image.read_bytes())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(render.encode(sheet, "png"))
        progress.note(f"Heatmaps by layer and method: {options.out}")


def _shown(picked: Backend, asked: Sequence[str], depth: int) -> list[LayerInfo]:
    """The layers to list: those of few levels that compute something, the rule's choice, and those that were asked for."""
    always = {*picked.layers, *asked}
    return [
        info
        for info in picked.maps
        if info.name in always or (info.name.count(".") < depth and not info.passes)
    ]  # fmt: skip


def _usable(subject: Subject, config: Config, shown: Sequence[LayerInfo], device: torch.device) -> tuple[Backend, dict[str, str]]:
    """A backend for all of these layers that can be explained, and why the others cannot."""
    names = tuple(info.name for info in shown)
    try:
        return open_backend(subject.model, replace(config, layers=names), subject.size, device), {}
    except ConfigError:  # one of them cannot be explained: which?
        refused = {name: why for name in names if (why := _refusal(subject, replace(config, layers=(name,)), device))}
    usable = tuple(name for name in names if name not in refused)
    return open_backend(subject.model, replace(config, layers=usable), subject.size, device), refused


def _refusal(subject: Subject, config: Config, device: torch.device) -> str:
    try:
        open_backend(subject.model, config, subject.size, device)
    except ConfigError as error:
        return str(error)
    return ""


def _costs(backend: Backend, size: tuple[int, int], rounds: int) -> dict[str, float]:
    """For each layer the time of an explanation over that of a prediction, one picture, alternating; the median of `rounds`."""
    picture = synthetic_picture(size, 1)
    explainer = Explainer(backend, torch.device("cpu"))
    costs = {}
    for layer in track(backend.layers, description="timing", transient=True):
        want = Want(layer, "gradcam++")
        ratios = []
        for turn in range(rounds + 1):
            plain = _seconds(lambda: explainer.explain([picture[0]], [None]))
            explained = _seconds(lambda want=want: explainer.explain([picture[0]], [want]))  # type: ignore[misc]
            ratios += [explained / plain] if turn else []
        costs[layer] = statistics.median(ratios)
    return costs


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print(
    picked: Backend, shown: Sequence[LayerInfo], costs: dict[str, float], size: tuple[int, int], progress: Progress
) -> None:
    table = Table("layer", "kind", "map", "stride", "signed", "gradients", "x prediction", "", box=None, padding=(0, 2, 0, 0))
    for info in shown:
        layout = info.site.layout
        stride = f"{size[0] / layout.height:g}x{size[1] / layout.width:g}"
        closed = "closed form" if info.name in picked.closed_form else "autograd"
        mark = "the rule's choice" if info.name == picked.layers[0] else ""
        shape = f"{layout.channels} x {layout.height}x{layout.width}"
        signed = "yes" if info.signed else "no"
        table.add_row(info.name, info.kind, shape, stride, signed, closed, f"{costs[info.name]:.2f}", mark)
    progress.console.width = max(progress.console.width, TABLE_WIDTH)
    progress.console.print(table)


def contact_sheet(subject: Subject, backend: Backend, device: torch.device, data: bytes) -> NDArray[np.uint8]:
    """One picture's overlays, RGB `[H, W, 3]`: a row for each layer, a column for each method, each with its name."""
    picture = open_picture(data, subject.config)
    tensor = subject.preprocess(picture)
    view = subject.preprocess.view(*picture.size) or Rect(0, 0, *picture.size)
    pixels, scale = render.fit(np.asarray(picture), SHEET_SIDE)
    placed = Rect(*(edge * scale for edge in (view.left, view.top, view.right, view.bottom)))
    explainer, look = Explainer(backend, device), subject.config
    rows = []
    for layer in backend.layers:
        maps = {method: _heatmap(explainer, layer, method, tensor) for method in METHODS}
        overlays = [render.overlay(pixels, each, placed, look.colormap, look.opacity) for each in maps.values()]
        rows.append(render.side_by_side(overlays, [f"{layer}  {method}" for method in maps]))
    width = max(row.shape[1] for row in rows)
    padded = [cv2.copyMakeBorder(row, 0, 4, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(0, 0, 0)) for row in rows]
    return np.concatenate([np.asarray(row, dtype=np.uint8) for row in padded])


def _heatmap(explainer: Explainer, layer: str, method: str, tensor: Tensor) -> NDArray[np.float32]:
    (seen,) = explainer.explain([tensor], [Want(layer, method)])
    if isinstance(seen, RequestError):
        raise seen
    return seen.maps[0].heatmap
