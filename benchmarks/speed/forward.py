"""What a forward pass takes by itself, however it is called: the floor of what a server's pictures can take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.speed.conditions import Spread, alternate, conditions, ratios, seconds_of
from benchmarks.speed.engine import BATCH, CPU, SIZE, Run, pictures_of
from camserve.capture.backend import open_backend
from camserve.capture.models.eager import freeze
from camserve.capture.tuning.memory_format import choose_memory_format
from camserve.core.config import Config
from camserve.pipeline.glibc import keep_freed_memory

MODELS = ("resnet18", "resnet50")


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
