"""Lists the layers of a model that have a map, with what each costs, and draws a picture's heatmaps at each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from camserve.capture import LayerInfo, open_model, synthesize_pictures
from camserve.capture.backend import Backend, open_backend
from camserve.capture.choose.bypass import MAX_BYPASS
from camserve.capture.choose.layer import find_faults
from camserve.capture.choose.members import JOIN
from camserve.capture.choose.scores import read_kind_of_scores
from camserve.capture.models.kinds import survey_model
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.core.geometry import Rect
from camserve.core.labels import Labels, name_both
from camserve.explain.explainer import Explainer
from camserve.explain.ranking import Task
from camserve.pictures import render
from camserve.pictures.bounds.reading import silence_decoders
from camserve.pictures.decode import open_picture
from camserve.pictures.files.modes import convert_to_rgb
from camserve.pipeline.opening import PROBE
from camserve.tools.console import Progress
from camserve.tools.packaging.flags.inspect_model import Options
from camserve.tools.packaging.inspected import InspectedModel
from camserve.tools.packaging.models import advice
from camserve.tools.reports.inspection.contact_sheet import Shot, draw_sheet

TABLE_WIDTH = 120
"""Characters that the table may take where there is no terminal to say."""

ABOUT_COSTS = (
    "x prediction: the time of an explanation over that of a prediction, one picture in one thread, processor time, in "
    "{precision}, both by the model as it is; a worker also folds normalisations and arranges weights, or compiles"
)


ABOUT_BYPASS = (
    "bypass: the share of what changes the scores that goes past the layer, by trial (its output is held while the picture "
    "changes, and where all that its cells change passes through it, what tokens beside them carry counts as held too); its maps "
    f"cannot show that. Above {MAX_BYPASS:g} the rule takes a layer only where no other is below"
)


def inspect(inspected: InspectedModel, options: Options, progress: Progress) -> None:
    """Prints the table, and draws the sheet where a picture is given."""
    device = torch.device("cpu")
    config = replace(inspected.config, layers=(), channels_last=False, runtime="torch")
    with progress.step("Run the model to find its layers") as tell:
        try:
            with advice.suggest_size(inspected.model, inspected.size, config, own=inspected.preprocess.view(*PROBE) is None):
                picked = _open(inspected, config, device, tell)
        except ConfigError:
            with suppress(ConfigError):  # it does not even run, as the error says already
                _print_none(inspected, options.depth, progress)
            raise
    shown = _shown(picked, inspected.config.layers, options.depth)
    backend, refused = _usable(inspected, config, shown, device)
    costs = _costs(backend, inspected, options.rounds)
    listed = [info for info in shown if info.name in backend.layers]
    _print(listed, picked.layers[0], backend, costs, inspected.size, progress=progress)
    progress.note(ABOUT_COSTS.format(precision=config.precision))
    progress.note(ABOUT_BYPASS)
    for note in picked.notes:
        progress.note(note)
    for name, why in refused.items():
        progress.note(f"  {name}: {why}")
    for name, aligned in backend.aligned.items():
        if aligned.note:
            progress.note(f"  {name}: {aligned.note}")
    progress.note(f"The rule picks {picked.layers[0]}: {picked.why}")
    if len(picked.maps) > len(shown):
        progress.note(f"{len(picked.maps) - len(shown)} deeper layers are not listed; --depth {options.depth + 1} lists more")
    if options.image:
        asked = {name for layer in (*inspected.config.layers, *picked.layers) for name in layer.split(JOIN)}
        rows = listed
        rows = rows if options.every_layer else _few(rows, asked)
        with progress.step(f"Explain {options.image.name} at {len(rows)} layers"):
            sheet = _sheet(inspected, backend, rows, picked.layers[0], options.image)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(render.encode(sheet, "png"))
        progress.note(f"Heatmaps by layer and method: {options.out}")


def _open(
    inspected: InspectedModel, config: Config, device: torch.device, tell: Callable[[str], None] = lambda _part: None
) -> Backend:
    classes = len(inspected.labels) if inspected.labels else None
    return open_backend(inspected.model, config, inspected.size, device, classes=classes, tell=tell)


def _shown(picked: Backend, asked: Sequence[str], depth: int) -> list[LayerInfo]:
    """The layers to list: those of few levels that compute something, the rule's choice, and those that were asked for."""
    always = {name for layer in (*picked.layers, *asked) for name in layer.split(JOIN)}
    if picked.kind == "onnx":  # whose names have no levels: more than the last of each size are listed at depth 3
        computed = [info for info in picked.maps if info.name in always or not info.passes_through]
        return computed if depth > 2 else _few(computed, always)
    return [
        info
        for info in picked.maps
        if info.name in always or (info.name.count(".") < depth and not info.passes_through)
    ]  # fmt: skip


def _usable(
    inspected: InspectedModel, config: Config, shown: Sequence[LayerInfo], device: torch.device
) -> tuple[Backend, dict[str, str]]:
    """A backend for all of these layers that can be explained, and why the others cannot."""
    names = tuple(info.name for info in shown)
    try:
        return _open(inspected, replace(config, layers=names), device), {}
    except ConfigError:  # one of them cannot be explained: which?
        refused = {name: why for name in names if (why := _refusal(inspected, replace(config, layers=(name,)), device))}
    usable = tuple(name for name in names if name not in refused)
    return _open(inspected, replace(config, layers=usable), device), refused


def _refusal(inspected: InspectedModel, config: Config, device: torch.device) -> str:
    try:
        _open(inspected, config, device)
    except ConfigError as error:
        return str(error)
    return ""


def _costs(backend: Backend, inspected: InspectedModel, rounds: int) -> dict[str, float]:
    """For each layer the time of an explanation over that of a prediction, one picture, alternating; the median of `rounds`."""
    picture = synthesize_pictures(inspected.size, 1, config=inspected.config)
    explainer = Explainer(backend, torch.device("cpu"))
    costs = {}
    for layer in track(backend.layers, description="timing", transient=True):
        want = Task(layer, "gradcam++")
        ratios = []
        for turn in range(rounds + 1):
            plain = _seconds(lambda: explainer.explain([picture[0]], [None]))
            explained = _seconds(lambda want=want: explainer.explain([picture[0]], [want]))  # type: ignore[misc]
            ratios += [explained / plain] if turn else []
        costs[layer] = statistics.median(ratios)
    return costs


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()  # other programs take nothing from it
    work()
    return time.process_time() - start


def _print(
    shown: Sequence[LayerInfo],
    picked: str,
    backend: Backend,
    costs: dict[str, float],
    size: tuple[int, int],
    *,
    progress: Progress,
) -> None:
    table = Table(
        "layer", "kind", "map", "stride", "signed", "bypass", "gradients", "x prediction", "", box=None, padding=(0, 2, 0, 0)
    )
    for info in shown:
        layout = info.site.layout
        rows, columns = layout.grid
        stride = f"{size[0] / rows:g}x{size[1] / columns:g}"
        closed = "closed form" if info.name in backend.closed_form else "autograd"
        mark = "the rule's choice" if info.name in picked.split(JOIN) else ""
        shape = f"{layout.channels} x {rows}x{columns}"
        signed = "yes" if info.signed else "no"
        share = backend.bypass[info.name]
        past = "?" if share is None else f"{share:.2f}"
        table.add_row(info.name, info.kind, shape, stride, signed, past, closed, f"{costs[info.name]:.2f}", mark)
    progress.console.width = max(progress.console.width, TABLE_WIDTH)
    progress.console.print(table)


def _print_none(inspected: InspectedModel, depth: int, progress: Progress) -> None:
    """Lists the layers of a model of which none can be explained, with what speaks against each.

    Raises:
        ConfigError: it does not even run.
    """
    pictures = synthesize_pictures(inspected.size, config=inspected.config)
    own = open_model(inspected.model, pictures)
    read_kind_of_scores(own, pictures, inspected.config, len(inspected.labels) if inspected.labels else None)
    found = survey_model(own, pictures, inspected.config.token_grid)
    shown = [info for info in found.layers if info.name.count(".") < depth]
    maps = [info for info in shown if info.cells > 1]
    faults = find_faults(own, pictures, maps, found.outputs) if maps else {}
    table = Table("layer", "kind", "output", "why it is not taken", box=None, padding=(0, 2, 0, 0))
    for info in shown:
        alone = "its map has a single cell" if info.layout else info.fault or "it has no spatial map"
        passed = "it only pools, or passes on" if info.passes_through else ""
        table.add_row(
            info.name, info.kind, "x".join(map(str, info.shape)), faults.get(info.name, passed) if info.cells > 1 else alone
        )
    progress.console.width = max(progress.console.width, TABLE_WIDTH)
    progress.console.print(table)


def list_few(backend: Backend, depth: int = 2) -> list[str]:
    """List the last layer of each size of map, and the rule's choice first: those that are worth comparing."""
    shown = _shown(backend, (), depth)
    chosen = {name for layer in backend.layers for name in layer.split(JOIN)}
    few = [info.name for info in _few(shown, chosen)]
    return [backend.layers[0], *(name for name in few if name not in chosen)]


def _few(rows: Sequence[LayerInfo], always: set[str]) -> list[LayerInfo]:
    """The last layer of each size of map, and those that are always drawn."""
    last = {(info.site.layout.height, info.site.layout.width): info.name for info in rows}
    return [info for info in rows if info.name in always or info.name in last.values()]


def _sheet(inspected: InspectedModel, backend: Backend, rows: Sequence[LayerInfo], picked: str, path: Path) -> NDArray[np.uint8]:
    """The contact sheet of a picture's file."""
    silence_decoders()
    picture = open_picture(path.read_bytes(), inspected.config)
    view = inspected.preprocess.view(*picture.size) or Rect(0, 0, *picture.size)
    shot = Shot(np.asarray(convert_to_rgb(picture)), view, inspected.preprocess(picture), path.name)
    names = inspected.labels
    label = Labels(backend.outputs, name_both(names) if names and backend.reader.binary else names).__getitem__
    return draw_sheet(backend, rows, shot, picked=picked, label=label, style=inspected.config)
