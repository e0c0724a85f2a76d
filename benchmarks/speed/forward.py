"""What a forward pass takes by itself, however it is called: the floor of what a server's pictures can take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.speed.conditions import Spread, alternate, conditions, ratios, seconds_of
from benchmarks.speed.engine import BATCH, CPU, SIZE, Run, pictures_of, plain
from camserve.capture.backend import Backend, open_backend
from camserve.capture.models.frozen import freeze
from camserve.capture.runtimes.engines import ENGINES, is_installed, open_engine
from camserve.capture.runtimes.graph import export_graph
from camserve.capture.runtimes.outputs import Outputs
from camserve.capture.tuning.glibc import keep_freed_memory
from camserve.capture.tuning.memory_format import choose_memory_format
from camserve.core.config import Config
from camserve.explain.explainer import Explainer
from camserve.explain.methods import METHODS, scale_maps
from camserve.explain.ranking import Task

MODELS = ("resnet18", "resnet50")

IN_RUNTIMES = ("resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_large", "convnext_tiny", "vgg16", "vit_b_16")
"""Models whose heads have a closed form, and others."""


def measure(rounds: int, say: Callable[[str], None], batch: int = BATCH) -> dict[str, Any]:
    """Milliseconds a picture of one model after the other, each called in every way in turns, on cores that do nothing else."""
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        runs, pictures = _ways(name), pictures_of(batch)
        work = {way: seconds_of(_run(model, pictures.to(memory_format=form))) for way, (model, form) in runs.items()}
        work["in bfloat16"] = seconds_of(_run(*_bfloat16(name, pictures)))
        timed = alternate(work, rounds, lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
        for way, values in timed.items():
            each = {key: 1000 * value / batch for key, value in Spread.of(values).__dict__.items()}
            over = Spread.of(ratios(values, timed["as served"])).__dict__
            rows.append({"model": name, "what": way, "ms": each, "over": over})
    told = conditions(model=f"{', '.join(MODELS)}, random weights", picture="noise, 224 x 224", batch=batch, rounds=rounds)
    return {"conditions": told, "forward": rows}


def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    freeze(model)
    return model


def _ways(name: str) -> dict[str, tuple[nn.Module, torch.memory_format]]:
    """The model in each way, with the memory format of its pictures."""
    plain, last = torch.contiguous_format, torch.channels_last
    model = _net(name)
    served, contiguous = copy.deepcopy(model), copy.deepcopy(model)
    form = open_backend(served, Config(), SIZE, CPU, tune=True).memory_format
    open_backend(contiguous, Config(channels_last=False), SIZE, CPU, tune=True)
    with torch.no_grad():
        script = torch.jit.optimize_for_inference(torch.jit.trace(model, pictures_of(BATCH)))
    return {
        "as it is": (model, plain),
        "as it is, channels_last": (copy.deepcopy(model).to(memory_format=last), last),  # type: ignore[call-overload]
        "served with channels_last: false": (contiguous, plain),
        "as served": (served, plain if form == "contiguous" else last),
        "TorchScript, optimised for inference": (script, plain),
    }


def _bfloat16(name: str, pictures: Tensor) -> tuple[nn.Module, Tensor]:
    model = _net(name).to(torch.bfloat16)
    choose_memory_format(model, pictures[:2], None)
    return model, pictures.to(torch.bfloat16)


def _run(model: nn.Module, pictures: Tensor) -> Run:
    def run() -> object:
        with torch.no_grad():
            return model(pictures)

    return run


def in_runtimes(name: str, rounds: int, say: Callable[[str], None], batch: int, processor: bool = False) -> dict[str, Any]:
    """A model in torch and in every installed runtime: explaining, predicting, and the runtime's own pass without the layer."""
    keep_freed_memory()
    pictures = pictures_of(batch)
    made = {each: _served(name, each) for each in ("torch", *filter(is_installed, ENGINES))}
    layer = made["torch"].layers[0]
    work: dict[str, Run] = {"untouched": plain(_net(name), pictures)}
    for runtime, backend in made.items():
        explainer, tensors = Explainer(backend, CPU), list(pictures)
        work[f"{runtime}: explaining"] = _calling(explainer, tensors, [Task(layer, "gradcam++")] * batch)
        work[f"{runtime}: predicting"] = _calling(explainer, tensors, [None] * batch)
        if runtime != "torch":
            work[f"{runtime}: plain"] = _session(name, runtime, pictures)
    timed = alternate(
        {each: seconds_of(run, processor) for each, run in work.items()}, rounds, lambda text: say(f"{name}: {text}")
    )
    exact = _exact(name, layer, pictures[:2])
    rows = [
        row for runtime, backend in made.items() for row in _compared(runtime, timed, _error(backend, layer, pictures[:2], exact))
    ]
    told = conditions(
        model=f"{name}, {layer}{'' if made['torch'].closed_form else ' (no closed form)'}, random weights",
        picture="noise, 224 x 224",
        batch=batch,
        rounds=rounds,
        time="seconds of the processor" if processor else "by the clock",
        runtimes=", ".join(
            f"{runtime} {backend.runtime.version}{_unlike(runtime, backend)}" for runtime, backend in made.items()
        ),
    )
    return {"conditions": told, "rows": rows}


def _compared(runtime: str, timed: dict[str, list[float]], error: float) -> list[dict[str, Any]]:
    explaining, predicting = timed[f"{runtime}: explaining"], timed[f"{runtime}: predicting"]
    pairs: list[tuple[str, list[float], list[float], float | None]] = [
        ("predicting in it over torch untouched", predicting, timed["untouched"], None)
    ]
    pairs.append(("explaining over predicting", explaining, predicting, 1.15))
    if runtime != "torch":
        own = timed[f"{runtime}: plain"]
        pairs.append(("explaining over its plain session", explaining, own, 1.03))
        pairs.append(("predicting over its plain session", predicting, own, 1.05))
        pairs.append(("explaining over explaining in torch, as served", explaining, timed["torch: explaining"], None))
    rows: list[dict[str, Any]] = [
        {"what": f"{runtime}: {words}", "goal": goal, "side": "most", **Spread.of(ratios(above, below)).__dict__}
        for words, above, below, goal in pairs
    ]
    words = f"{runtime}: heatmaps off the float64 ones, in units of 1e-4"
    return [*rows, {"what": words, "goal": 1.0, "side": "most", "median": error, "low": error, "high": error}]


def _served(name: str, runtime: str) -> Backend:
    return open_backend(_net(name), Config(runtime=runtime), SIZE, CPU, tune=True)


def _unlike(runtime: str, backend: Backend) -> str:
    return "" if backend.runtime.name == runtime else f" (refused: {backend.runtime.why})"


def _calling(explainer: Explainer, tensors: list[Tensor], tasks: list[Task | None]) -> Run:
    return lambda: explainer.explain(tensors, tasks)


def _session(name: str, runtime: str, pictures: Tensor) -> Run:
    """A session of the same model without its layer's output, as somebody would make it who only predicts."""
    graph = export_graph(Outputs(_net(name), {}, ()), [], pictures[:2])
    engine = open_engine(runtime, graph, torch.get_num_threads())
    return lambda: engine.run(pictures, ())


def _exact(name: str, layer: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The classes, and the heatmaps of these in float64."""
    backend = open_backend(_net(name).double(), Config(layers=(layer,), channels_last=False), SIZE, CPU)
    classes = backend.capture.forward(pictures.double(), ()).values.argmax(1)
    return classes, _heatmaps(backend, layer, pictures.double(), classes)


def _heatmaps(backend: Backend, layer: str, pictures: Tensor, classes: Tensor) -> Tensor:
    captured = backend.capture.forward(pictures, [layer])
    gradients = captured.gradients(layer, torch.arange(len(pictures)), classes)
    maps = METHODS["gradcam++"].function(captured.activation(layer), gradients)
    return torch.from_numpy(scale_maps(maps)[0])


def _error(backend: Backend, layer: str, pictures: Tensor, exact: tuple[Tensor, Tensor]) -> float:
    return 1e4 * float((_heatmaps(backend, layer, pictures, exact[0]) - exact[1]).abs().max())
