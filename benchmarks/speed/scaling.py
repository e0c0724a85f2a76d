"""What an explanation costs as batches, pictures, targets and layers change, and how a server scales."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.conditions import Spread, alternate, conditions, java_version, ratios, seconds_of
from benchmarks.speed.engine import Ours, Run, pictures_of, resnet50
from benchmarks.speed.live import CONFIG, CONNECTIONS, served
from benchmarks.speed.served import archives
from benchmarks.speed.served.load import load, wrk_version
from camserve.capture.tuning.glibc import keep_freed_memory
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.server import Server

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (224, 320, 448, 640, 1024)
TARGETS = (1, 2, 5, 10, 20)
DEPTHS = ("layer4", "layer3", "layer2", "layer1", "maxpool")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def engine(rounds: int, say: Callable[[str], None], quick: bool = False, processor: bool = False) -> dict[str, Any]:
    """The curves that need no server, on ResNet-50 as served (tuned)."""
    keep_freed_memory()
    ours = {closed: _ours(closed) for closed in (True, False)}
    found = {
        "batch": _curve(BATCHES[:4] if quick else BATCHES, rounds, say, processor, lambda n: _both(ours, n, 224, 1)),
        "picture": _curve(SIDES[:2] if quick else SIDES, rounds, say, processor, lambda side: _both(ours, 2, side, 1)),
        "targets": _curve(TARGETS[:3] if quick else TARGETS, rounds, say, processor, lambda n: _both(ours, 8, 224, n)),
        "layer": _curve(DEPTHS[:2] if quick else DEPTHS, rounds, say, processor, _at_depth),
    }
    clock = "seconds of the processor" if processor else "by the clock"
    told = conditions(model="ResNet-50, tuned as served, random weights", rounds=rounds, picture="noise", time=clock)
    return {"conditions": told, "curves": found}


def _ours(closed: bool, layer: str = "layer4") -> Ours:
    return Ours(resnet50(channels_last=False), None, tune=True, closed=closed, layer=layer)


def _both(ours: dict[bool, Ours], batch: int, side: int, targets: int) -> dict[str, Run]:
    pictures = pictures_of(batch, True, (side, side))
    classes = tuple(range(targets))
    return {
        "plain": ours[True].plain(pictures),
        "closed form": ours[True].explain(pictures, classes),
        "autograd": ours[False].explain(pictures, classes),
    }


def _at_depth(layer: str) -> dict[str, Run]:
    made, pictures = _ours(closed=False, layer=layer), pictures_of(8, True)
    return {"plain": made.plain(pictures), "autograd": made.explain(pictures)}


def _curve(
    places: Sequence[Any],
    rounds: int,
    say: Callable[[str], None],
    processor: bool,
    runs: Callable[[Any], dict[str, Run]],
) -> list[dict[str, Any]]:
    rows = []
    for place in places:
        timed = alternate({name: seconds_of(run, processor) for name, run in runs(place).items()}, rounds, _telling(say, place))
        row: dict[str, Any] = {"at": place, "plain": Spread.of(timed["plain"]).median}
        for name in filter(lambda each: each != "plain", timed):
            row[name] = Spread.of(ratios(timed[name], timed["plain"])).__dict__
        rows.append(row)
    return rows


def server(rounds: int, seconds: float, say: Callable[[str], None], model: str = "resnet18") -> dict[str, Any]:
    """Answers a second against the share of explanations and the number of workers."""
    counts = sorted({1, 2, count_cores()})
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        archives.ours(store, model)
        picture = archives.photograph(store)
        say(f"{model}: share of explanations")
        with served(store, [model]) as (one,):
            shares = alternate({str(share): _rate(one, model, picture, seconds, share) for share in SHARES}, rounds, say)
        workers: dict[int, dict[str, Any]] = {}
        for count in counts:
            name = archives.variant(store, model, f"{model}_{count}", minWorkers=count, maxWorkers=count)
            with served(store, [name]) as (several,):
                runs = {
                    kind: _rate(several, name, picture, seconds, share)
                    for kind, share in (("predictions", 0.0), ("explanations", 1.0))
                }
                found = alternate(runs, rounds, _telling(say, f"{count} workers"))
            workers[count] = {kind: Spread.of(values).__dict__ for kind, values in found.items()}
    told = conditions(
        model=f"{model}, random weights",
        picture="photograph, JPEG, 640 x 480",
        load=f"{wrk_version()}, {CONNECTIONS} connections, {seconds:g} s a slice, {rounds} rounds; workers not in turns",
        java=java_version(),
        config=CONFIG.name,
    )
    return {
        "conditions": told,
        "shares": [{"at": float(share), **Spread.of(values).__dict__} for share, values in shares.items()],
        "workers": [{"at": count, **rows} for count, rows in workers.items()],
    }


def _rate(server: Server, model: str, picture: Path, seconds: float, share: float) -> Callable[[], float]:
    return lambda: load(server.url, model, picture, seconds=seconds, share=share).rate


def _telling(say: Callable[[str], None], place: object) -> Callable[[str], None]:
    return lambda text: say(f"{place}: {text}")
