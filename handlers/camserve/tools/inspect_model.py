"""What can be explained here? Lists the layers of a model or an archive that have a map, and what each costs.

With --image, draws that picture's heatmaps by layer and by method on one contact sheet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from camserve import render
from camserve.capture import LayerInfo, synthetic_picture
from camserve.capture.backend import Backend, open_backend
from camserve.config import Config
from camserve.decode import open_picture
from camserve.errors import ConfigError, RequestError
from camserve.explainer import Explainer, Want
from camserve.geometry import Rect, input_size
from camserve.images import Preprocess
from camserve.labels import Labels
from camserve.tools import keys, sources
from camserve.tools.archive import load_service, open_archive
from camserve.tools.console import Progress, ToolError, command_of, fail
from camserve.tools.contact_sheet import Shot, contact_sheet
from camserve.tools.fresh.worker import words

TABLE_WIDTH = 120
"""Characters that the table may take where there is no terminal to say."""


@dataclass(frozen=True)
class Subject:
    """A model, how pictures are prepared for it, the (height, width) that it sees, and names of its classes, if known."""

    model: Any
    config: Config
    preprocess: Preprocess
    size: tuple[int, int]
    labels: Mapping[str, str] | None


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
    made.add_argument("--every-layer", action="store_true", help="draw each listed layer, not the last of each size of map only")
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
    return Subject(handler.model, handler.config, handler._preprocess_of(handler.config), size, handler.mapping)


def _of_model(options: argparse.Namespace, workdir: Path) -> Subject:
    if options.torchvision:
        source = sources.from_torchvision(options.torchvision, workdir, options.weights, random=options.weights is None)
    elif options.weights:
        source = sources.from_file(options.model_file, options.weights, workdir)
    else:
        raise ToolError("--model-file needs --weights FILE")
    config = Config.from_mapping({**source.preprocessing, **keys.given_keys(options)})
    labels = {str(index): label for index, label in enumerate(source.labels)} if source.labels else None
    return Subject(source.model, config, Preprocess(config), input_size(256, 256, config.resize, config.crop), labels)


def inspect(subject: Subject, options: argparse.Namespace, progress: Progress) -> None:
    """Prints the table, and draws the sheet where a picture is given."""
    device = torch.device("cpu")
    config = replace(subject.config, layers=(), channels_last=False)
    with progress.step("Run the model once to find its layers"):
        picked = open_backend(subject.model, config, subject.size, device)
    shown = _shown(picked, subject.config.layers, options.depth)
    backend, refused = _usable(subject, config, shown, device)
    costs = _costs(backend, subject.size, options.rounds)
    listed = [info for info in shown if info.name in backend.layers]
    _print(listed, picked.layers[0], backend.closed_form, costs, subject.size, progress=progress)
    for name, why in refused.items():
        progress.note(f"  {name}: {why}")
    progress.note(f"The rule picks {picked.layers[0]}: {picked.why}")
    if len(picked.maps) > len(shown):
        progress.note(f"{len(picked.maps) - len(shown)} deeper layers are not listed; --depth {options.depth + 1} lists more")
    if options.image:
        asked = {*subject.config.layers, *picked.layers}
        rows = listed
        rows = rows if options.every_layer else _few(rows, asked)
        with progress.step(f"Explain {options.image.name} at {len(rows)} layers"):
            sheet = _sheet(subject, backend, rows, picked.layers[0], options.image)
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
    shown: Sequence[LayerInfo],
    picked: str,
    closed_form: Collection[str],
    costs: dict[str, float],
    size: tuple[int, int],
    *,
    progress: Progress,
) -> None:
    table = Table("layer", "kind", "map", "stride", "signed", "gradients", "x prediction", "", box=None, padding=(0, 2, 0, 0))
    for info in shown:
        layout = info.site.layout
        stride = f"{size[0] / layout.height:g}x{size[1] / layout.width:g}"
        closed = "closed form" if info.name in closed_form else "autograd"
        mark = "the rule's choice" if info.name == picked else ""
        shape = f"{layout.channels} x {layout.height}x{layout.width}"
        signed = "yes" if info.signed else "no"
        table.add_row(info.name, info.kind, shape, stride, signed, closed, f"{costs[info.name]:.2f}", mark)
    progress.console.width = max(progress.console.width, TABLE_WIDTH)
    progress.console.print(table)


def _few(rows: Sequence[LayerInfo], always: set[str]) -> list[LayerInfo]:
    """The last layer of each size of map, and those that are always drawn."""
    last = {(info.site.layout.height, info.site.layout.width): info.name for info in rows}
    return [info for info in rows if info.name in always or info.name in last.values()]


def _sheet(subject: Subject, backend: Backend, rows: Sequence[LayerInfo], picked: str, path: Path) -> NDArray[np.uint8]:
    """The contact sheet of a picture's file."""
    picture = open_picture(path.read_bytes(), subject.config)
    view = subject.preprocess.view(*picture.size) or Rect(0, 0, *picture.size)
    shot = Shot(np.asarray(picture), view, subject.preprocess(picture), path.name)
    label = Labels(backend.outputs, subject.labels).__getitem__
    return contact_sheet(backend, rows, shot, picked=picked, label=label, look=subject.config)
