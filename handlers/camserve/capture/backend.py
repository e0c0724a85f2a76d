"""Makes a loaded model ready to be explained: chooses the layers, the memory format and the precision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camserve.capture.alignment.align import Aligned
from camserve.capture.base import Capture, CaptureSettings, Classifier
from camserve.capture.choose.bypass import BypassTrial
from camserve.capture.choose.chosen import add_doubts, choose_and_place
from camserve.capture.choose.gradients import find_cam_weights
from camserve.capture.choose.members import list_members, split_name
from camserve.capture.choose.scores import check_rows, read_kind_of_scores
from camserve.capture.models.eager import EagerClassifier
from camserve.capture.models.kinds import copy_exactly, open_model, summarize_error, survey_model
from camserve.capture.models.passes import fit_batch
from camserve.capture.models.programs.graphs.classifier import GraphClassifier
from camserve.capture.models.views import JoinedCapture
from camserve.capture.precision import precision_context
from camserve.capture.runtimes.agreement import Draw, draw_plainly
from camserve.capture.runtimes.archived import ArchivedGraph, open_archived
from camserve.capture.runtimes.choose import Runtime, Trunk, open_runtime, refuse_runtime
from camserve.capture.survey.layers import LayerInfo, Site
from camserve.capture.survey.layout import synthesize_pictures
from camserve.capture.survey.reader import FIRST, OutputReader
from camserve.capture.tuning.fold import fold_norms
from camserve.capture.tuning.memory_format import MemoryFormat, choose_memory_format
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.core.text import join_names

AS_GRAPH = "written as an ONNX graph (torch.onnx.export) and packaged with --onnx it runs in ONNX Runtime"


@dataclass(frozen=True)
class Backend:
    """A model that is ready to be explained.

    Attributes:
        capture: runs the model.
        layers: the layers that may be asked for, the default first.
        outputs: number of classes.
        why: why the default layer was chosen, "" where it was given.
        closed_form: the layers whose gradients need no backward pass.
        memory_format: in which the model runs.
        kind: `eager`, `torchscript`, `exported` or `onnx`.
        compiled: whether the model came compiled, so that predictions run compiled; explanations too where `runtime` says so.
        runtime: what computes the trunk.
        maps: all layers that have a map.
        reader: how the scores are read.
        notes: what a trial showed of them that the user should hear.
        aligned: where the cells of each of `layers` lie in the picture.
        bypass: how much of the scores goes past each of `layers`, from 0 to about 1; None where that cannot be measured.
        beside: how much of the scores the tokens beside the cells of each of `layers` carry past it, which no map of it shows,
            from 0 to about 1; only of layers that have such tokens.
        doubts: what speaks against each of `layers` that can be explained all the same, for those of which something does.
        class_token: whether the scores are read at a token beside those of the picture, and at none of these.
        earlier: whether the default layer was chosen before later ones, past which something goes.
        cancels: whether activation times gradient adds up to nothing over the channels at the default layer.
    """

    capture: Capture
    layers: tuple[str, ...]
    outputs: int
    why: str
    closed_form: tuple[str, ...]
    memory_format: MemoryFormat
    kind: str = "eager"
    compiled: bool = False
    maps: tuple[LayerInfo, ...] = ()
    reader: OutputReader = FIRST
    notes: tuple[str, ...] = ()
    aligned: Mapping[str, Aligned] = field(default_factory=dict)
    bypass: Mapping[str, float | None] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    class_token: bool = False
    earlier: bool = False
    cancels: bool = False
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def uneven(self) -> str:
        """Why a channel's gradient differs from cell to cell at the default layer, so that no one weight stands for it; or ""."""
        if self.class_token:
            return "the model has a class token"
        return "its default layer lies before others, past which something goes" if self.earlier else ""

    @property
    def placed(self) -> tuple[str, ...]:
        """The layers that can be laid on each other, for a trial tells where their cells lie, in the order in which they run.

        Of several that are explained as one the last counts.
        """
        places = {info.name: place for place, info in enumerate(self.maps)}
        told = [layer for layer in self.layers if self.aligned[layer].told]
        return tuple(sorted(told, key=lambda layer: max(places[member] for member in split_name(layer, places))))

    @property
    def channels_last(self) -> bool:
        """Whether pictures should lie in channels_last."""
        return self.memory_format != "contiguous" and self.runtime.name in ("torch", "compile")


def open_backend(
    model: object,
    config: Config,
    size: tuple[int, int],
    device: torch.device,
    *,
    tune: bool = False,
    classes: int | None = None,
    graph: Path | None = None,
    draw: Draw = draw_plainly,
    tell: Callable[[str], None] = lambda _part: None,
) -> Backend:
    """Prepare a model for pictures of `size` = (height, width).

    Freezes the model's parameters, and may change an eager model's memory format. With `tune` it also changes the weights
    (`fold_norms`) and how convolutions run (`prepack`); do not ask for that to save, trace or inspect the model afterwards.

    Args:
        model: an eager module, a TorchScript module, an exported program or its restored module (`load_exported`). Of a compiled
            one, predictions run compiled, and explanations too, where its compiler takes it with its layers' outputs.
        tune: whether the model may be changed so that it runs faster.
        classes: how many labels there are; of several outputs their number may tell which holds the scores.
        graph: the file of the model's graph for a runtime; where it does not exist, it is written, if one is needed.
        draw: makes the maps by which a runtime is compared with torch.
        tell: is told which part of the work begins, in words.

    Raises:
        ConfigError: the model does not run on such pictures, or not in the memory format that was asked for; a layer does not
            exist, has no map or decides nothing; or no layer is given, and none is found; or nothing tells which output holds the
            scores.
    """
    pictures = synthesize_pictures(size, config=config).to(device)
    classifier = open_model(model, pictures)
    notes = (*read_kind_of_scores(classifier, pictures, config, classes), *check_rows(classifier, pictures))
    tried = copy_exactly(classifier, pictures) if type(classifier) is EagerClassifier else classifier
    tell("looking at every layer's output")
    survey = survey_model(tried, pictures, config.token_grid)
    tell(f"trying which of {len(survey.maps)} maps the prediction depends on")
    trial = BypassTrial(tried, pictures, survey.maps)
    chosen, aligned = choose_and_place(tried, pictures, survey, config, trial=trial, tell=tell)
    members = {layer: list_members(layer, survey) for layer in chosen.layers}
    sites = {layer: each.site for layer, each in aligned.items()}
    weights = _find_weights(tried, pictures, sites, survey.outputs)
    form = _arrange(model, classifier, pictures, config, list(aligned), tune=tune)
    compiled: Any = model if getattr(model, "_orig_mod", model) is not model else None
    settings = CaptureSettings(weights, size, compiled, precision_context(config.precision, device), classifier.reader)
    opened = Opened(classifier.capture(sites, settings), sites, settings, size, device, form, graph, draw)
    capture, runtime = _choose_runtime(model, classifier, config, opened, pictures=pictures, tell=tell)
    joined = {layer: names for layer, names in members.items() if len(names) > 1}
    together = {layer: Aligned.join(layer, [aligned[name] for name in names]) for layer, names in members.items()}
    chosen = add_doubts(chosen, together, members, trial, closed=weights)
    beside = {layer: trial.measure_beside(sites[layer]) for layer in chosen.layers if layer in sites}
    return Backend(
        capture=JoinedCapture(capture, joined) if joined else capture,
        outputs=survey.outputs,
        closed_form=tuple(layer for layer in weights if layer in chosen.layers),
        memory_format=form,
        kind=classifier.kind,
        compiled=compiled is not None,
        maps=survey.maps,
        reader=classifier.reader,
        notes=notes,
        aligned=together,
        beside={layer: share for layer, share in beside.items() if share is not None},
        runtime=runtime,
        **chosen._asdict(),
    )


def _find_weights(classifier: Classifier, pictures: Tensor, sites: Mapping[str, Site], outputs: int) -> dict[str, Tensor]:
    """Find the matrix of each site behind which the gradients have a closed form."""
    found = {layer: find_cam_weights(classifier, site, pictures, outputs) for layer, site in sites.items()}
    return {layer: weight for layer, weight in found.items() if weight is not None}


def _arrange(
    model: Any, classifier: Classifier, pictures: Tensor, config: Config, layers: Collection[str], *, tune: bool
) -> MemoryFormat:
    """Fold an eager model's norms where `tune` allows it, put it into a memory format, and return that.

    Raises:
        ConfigError: a format is asked for in which the model does not run, or of a model that keeps its own.
    """
    if not isinstance(classifier, EagerClassifier) or classifier.kind != "eager":
        if config.channels_last or config.memory_format:
            key = f"memory_format: {config.memory_format}" if config.memory_format else "channels_last: true"
            raise ConfigError(f"{key} is for eager models; a model of the kind {classifier.kind} keeps its own, leave it out")
        return "contiguous"
    eager: Any = getattr(model, "_orig_mod", model)
    pictures = fit_batch(pictures, classifier.batch)
    if tune:
        fold_norms(eager, pictures, layers, classifier.reader)
    on_cpu = pictures.device.type == "cpu"  # packaging measures on the CPU; a GPU's worker measures
    return choose_memory_format(
        eager,
        pictures,
        config.channels_last,
        tune and eager is model and config.precision == "float32",
        recorded=config.memory_format if on_cpu else None,
        reader=classifier.reader,
    )


class Opened(NamedTuple):
    """A model that runs in torch, before another runtime takes its place."""

    capture: Capture
    sites: Mapping[str, Site]
    settings: CaptureSettings
    size: tuple[int, int]
    device: torch.device
    form: MemoryFormat
    graph: Path | None
    draw: Draw


def _choose_runtime(
    model: Any, classifier: Classifier, config: Config, opened: Opened, *, pictures: Tensor, tell: Callable[[str], None]
) -> tuple[Capture, Runtime]:
    """Open the runtime as `_open_runtime`, say so where it may take long, and compile a compiled model that runs in torch.

    Raises:
        ConfigError: as `_open_runtime` and `_compile_now`.
    """
    compiled = opened.settings.predict is not None
    if compiled or config.runtime != "torch" or isinstance(classifier, GraphClassifier):
        tell("trying the runtime")
    capture, runtime = _open_runtime(model, classifier, config, opened)
    if compiled and runtime.name != "compile":
        _compile_now(capture, pictures, opened.form)
    return capture, runtime


def _open_runtime(model: Any, classifier: Classifier, config: Config, opened: Opened) -> tuple[Capture, Runtime]:
    """Open the runtime that the configuration asks for; of a model that came compiled, its compiler.

    Raises:
        ConfigError: the model came compiled, and another runtime is asked for; or it is a graph that does not run in any.
    """
    if isinstance(classifier, GraphClassifier):
        if config.precision != "float32":
            raise ConfigError(f"precision: {config.precision}: an ONNX graph computes in its own precision; leave it out")
        given = synthesize_pictures(opened.size, 4, seed=1, config=config).to(opened.device)
        settings = replace(opened.settings, reader=classifier.reader)
        return open_archived(
            config.runtime if "runtime" in config.given else "onnxruntime",
            ArchivedGraph(classifier, opened.capture, opened.sites, settings, given),
        )
    compiler = getattr(model, "dynamo_ctx", None) if getattr(model, "_orig_mod", model) is not model else None
    if compiler is not None and config.runtime not in ("torch", "compile"):
        raise ConfigError(f"runtime: {config.runtime} and pt2 are both given, and each says what runs the model: leave one out")
    asked = "compile" if compiler is not None else config.runtime
    if asked == "torch" or (asked == "auto" and opened.device.type != "cpu"):
        return opened.capture, Runtime()
    alone = f"a model of the kind {classifier.kind} runs in torch alone; {AS_GRAPH}"
    if type(classifier) is EagerClassifier and classifier.batch[1]:
        alone = "each picture has a pass of its own, and such a model runs in torch alone"
    if type(classifier) is not EagerClassifier or classifier.kind != "eager" or classifier.batch[1]:
        return opened.capture, refuse_runtime(asked, alone)
    if asked == "tensorrt":
        return opened.capture, refuse_runtime(asked, "it runs models that come as an ONNX graph (--onnx) alone")
    dtypes = {str(each.dtype).removeprefix("torch.") for each in classifier.module.parameters()} | {config.precision}
    if dtypes != {"float32"}:
        return opened.capture, refuse_runtime(asked, f"it computes in float32, and this model in {join_names(sorted(dtypes))}")
    as_given = torch.contiguous_format if opened.form == "contiguous" else torch.channels_last
    pictures = synthesize_pictures(opened.size, 4, seed=1, config=config).to(opened.device, memory_format=as_given)
    how = compiler or torch.compile
    trunk = Trunk(classifier.module, opened.capture, opened.sites, opened.settings, pictures, opened.graph, how, opened.draw)
    return open_runtime(asked, trunk)


def _compile_now(capture: Capture, pictures: Tensor, form: MemoryFormat) -> None:
    """Run the compiled model once: it is compiled when it first runs.

    Raises:
        ConfigError: compiling it, or running it, fails.
    """
    as_given = torch.contiguous_format if form == "contiguous" else torch.channels_last
    try:
        capture.forward(pictures.contiguous(memory_format=as_given), ())
    except Exception as error:
        raise ConfigError(f"pt2: the compiled model does not run: {type(error).__name__}: {summarize_error(error)}") from error
