"""The engine alone: what explaining a batch costs over the plain forward pass, here and with other libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.speed.conditions import Spread, alternate, conditions, ratios, seconds_of
from camserve.capture.backend import Backend, open_backend
from camserve.capture.base import CaptureSettings
from camserve.capture.models.eager import EagerCapture
from camserve.capture.models.frozen import freeze
from camserve.capture.precision import precision_context
from camserve.capture.tuning.glibc import keep_freed_memory
from camserve.core.config import Config
from camserve.explain.explainer import Explainer
from camserve.explain.ranking import Task

LAYER = "layer4"
SIZE = (224, 224)
BATCH = 8
CPU = torch.device("cpu")
TARGETS = (1, 22, 333, 444, 555)
FORMATS = {"contiguous": False, "channels_last": True}

Run = Callable[[], object]


def resnet50(channels_last: bool) -> nn.Module:
    """Random weights, the same each time; as published it is trained, which times do not depend on."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def pictures_of(count: int, channels_last: bool = False, size: tuple[int, int] = SIZE) -> Tensor:
    """Normalised noise `[count, 3, H, W]`."""
    made = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Ours:
    """Our engine on a model of its own.

    Args:
        tune: whether the model is tuned, as the handler does: batch normalisation folded, convolutions prepacked.
        closed: whether the closed form is used where there is one.
        channels_last: the memory format; None: the faster.
    """

    def __init__(
        self,
        model: nn.Module,
        channels_last: bool | None,
        *,
        tune: bool,
        closed: bool,
        layer: str = LAYER,
        device: torch.device = CPU,
        precision: str = "float32",
    ) -> None:
        self.model = model.to(device)
        config = Config(layers=(layer,), channels_last=channels_last, precision=precision)
        backend: Backend = open_backend(self.model, config, SIZE, device, tune=tune)
        if not closed:
            site = next(info.site for info in backend.maps if info.name == layer)
            settings = CaptureSettings({}, context=precision_context(precision, device))
            backend = replace(backend, capture=EagerCapture(self.model, {layer: site}, settings), closed_form=())
        self.backend = backend
        self.layer = layer
        self.explainer = Explainer(backend, device)

    def explain(self, pictures: Tensor, targets: tuple[int, ...] = ()) -> Run:
        """Explains the batch: from the pictures' tensors to heatmaps and the listed classes, all of it."""
        tensors, wants = list(pictures), [Task(self.layer, "gradcam++", targets)] * len(pictures)
        return lambda: self.explainer.explain(tensors, wants)

    def plain(self, pictures: Tensor) -> Run:
        """A forward pass of the same model and nothing else."""
        return plain(self.model, pictures)


def plain(model: nn.Module, pictures: Tensor) -> Run:
    """A forward pass in inference mode."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(pictures)

    return run


def peers(model: nn.Module, pictures: Tensor) -> dict[str, Run]:
    """Other libraries as their documentation uses them, each for the most probable class of each picture; those installed.

    torch-cam and pytorch-grad-cam make Grad-CAM++; captum has Grad-CAM only, and is given the classes.
    """
    makers = {"pytorch-grad-cam": _pytorch_grad_cam, "torch-cam": _torch_cam, "captum": _captum}
    return {name: make(model, pictures) for name, make in makers.items() if find_spec(MODULES[name])}


MODULES = {"pytorch-grad-cam": "pytorch_grad_cam", "torch-cam": "torchcam", "captum": "captum"}


def missing() -> list[str]:
    """Peers that are not installed."""
    return [name for name, module in MODULES.items() if find_spec(module) is None]


def _pytorch_grad_cam(model: nn.Module, pictures: Tensor) -> Run:
    from pytorch_grad_cam import GradCAMPlusPlus  # noqa: PLC0415

    made = GradCAMPlusPlus(model=model, target_layers=[model.get_submodule(LAYER)])
    return lambda: made(input_tensor=pictures, targets=None)


def _torch_cam(model: nn.Module, pictures: Tensor) -> Run:
    from torchcam.methods import GradCAMpp  # noqa: PLC0415

    def run() -> object:
        with GradCAMpp(model, LAYER) as extractor:
            scores = model(pictures)
            return extractor(scores.argmax(1).tolist(), scores)

    return run


def _captum(model: nn.Module, pictures: Tensor) -> Run:
    from captum.attr import LayerGradCam  # noqa: PLC0415

    made = LayerGradCam(model, model.get_submodule(LAYER))
    with torch.no_grad():
        classes = model(pictures).argmax(1)
    return lambda: made.attribute(pictures, target=classes)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collects the bytes of all tensors that autograd saves inside, by storage; weights do not count."""
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # a freed address would be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def saved(model: nn.Module, run: Run, batch: int) -> float:
    """MiB that are saved for backward, a picture."""
    with saved_bytes(model) as found:
        run()
    return sum(found.values()) / 2**20 / batch


def measure(rounds: int, say: Callable[[str], None], batch: int = BATCH, processor: bool = False) -> dict[str, Any]:
    """All ratios of the goals that need no server; by the clock, or in seconds of the `processor`.

    The model as it is and other libraries take both memory formats in turn; tuned, as served, it takes the one that it chooses.
    """
    keep_freed_memory()  # as the handler does; the peers gain as much by it
    rows: list[dict[str, Any]] = []
    saved_rows: dict[str, float] = {}
    seconds: dict[str, dict[str, float]] = {}
    for name, channels_last in FORMATS.items():
        pictures = pictures_of(batch, channels_last)
        model = resnet50(channels_last)
        kinds = {
            (tune, closed): Ours(copy.deepcopy(model), None if tune else channels_last, tune=tune, closed=closed)
            for tune in (False, True)
            for closed in (False, True)
        }
        for ours in kinds.values():
            freeze(ours.model)
        runs = _runs(model, kinds, pictures)
        timed = alternate({each: seconds_of(run, processor) for each, run in runs.items()}, rounds, _telling(say, name))
        rows += [{"format": name, **row} for row in _rows(timed)]
        seconds[name] = {each: Spread.of(values).median for each, values in timed.items()}
        if not channels_last:
            saved_rows = {
                "camserve, autograd": saved(kinds[False, False].model, kinds[False, False].explain(pictures), batch),
                "camserve, closed form": saved(kinds[False, True].model, kinds[False, True].explain(pictures), batch),
                **{peer: saved(model, run, batch) for peer, run in peers(model, pictures).items()},
            }
    told = conditions(
        model=f"ResNet-50, {LAYER}, random weights",
        picture="noise, 224 x 224",
        batch=batch,
        rounds=rounds,
        time="seconds of the processor" if processor else "by the clock",
    )
    return {"conditions": told, "rows": rows, "saved": saved_rows, "seconds": seconds}


def _telling(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"{name}, {text}")


def _runs(model: nn.Module, kinds: Mapping[tuple[bool, bool], Ours], pictures: Tensor) -> dict[str, Run]:
    return {
        "plain": plain(copy.deepcopy(model), pictures),
        "plain, tuned": kinds[True, True].plain(pictures),
        "autograd": kinds[False, False].explain(pictures),
        "closed form": kinds[False, True].explain(pictures),
        "autograd, tuned": kinds[True, False].explain(pictures),
        "closed form, tuned": kinds[True, True].explain(pictures),
        "five targets, autograd": kinds[False, False].explain(pictures, TARGETS),
        "five targets, closed form": kinds[False, True].explain(pictures, TARGETS),
        **peers(model, pictures),
    }


COMPARED = (
    ("explaining over its own plain forward, autograd", "autograd", "plain", 1.05, "most"),
    ("the same, tuned", "autograd, tuned", "plain, tuned", 1.05, "most"),
    ("explaining over its own plain forward, closed form", "closed form", "plain", 1.02, "most"),
    ("the same, tuned", "closed form, tuned", "plain, tuned", 1.02, "most"),
    ("five targets a picture over the plain forward, autograd", "five targets, autograd", "plain", 1.10, "most"),
    ("five targets a picture over the plain forward, closed form", "five targets, closed form", "plain", 1.10, "most"),
    ("pytorch-grad-cam over ours (autograd)", "pytorch-grad-cam", "autograd", 3.0, "least"),
    ("torch-cam over ours (autograd)", "torch-cam", "autograd", 1.05, "least"),
    ("captum over ours (autograd)", "captum", "autograd", 1.05, "least"),
    ("pytorch-grad-cam over ours as served (tuned, closed form)", "pytorch-grad-cam", "closed form, tuned", 3.0, "least"),
    ("torch-cam over ours as served", "torch-cam", "closed form, tuned", 1.05, "least"),
    ("captum over ours as served", "captum", "closed form, tuned", 1.05, "least"),
    ("plain forward over the tuned one", "plain", "plain, tuned", None, "least"),
)
"""What is compared: in words, what is divided by what, the goal, and whether that is the most or the least it may be."""


def _rows(timed: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    for words, above, below, goal, side in COMPARED:
        if above not in timed:
            continue
        spread = Spread.of(ratios(timed[above], timed[below]))
        rows.append({"what": words, "goal": goal, "side": side, **spread.__dict__})
    return rows
