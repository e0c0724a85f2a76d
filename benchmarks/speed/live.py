"""Live servers: ours beside the stock handler's, with the same weights, preprocessing, picture, load and batch."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.speed.conditions import Spread, alternate, conditions, java_version, ratios
from benchmarks.speed.served import archives
from benchmarks.speed.served.load import load, wrk_version
from camserve.tools.serving.server import Server

CONFIG = archives.ROOT / "config.properties"
CONNECTIONS = 16
RUNTIME = ("--runtime", "auto")
"""Of ours: whatever packaging finds to be fastest here."""
OVER_STOCK = {
    "efficientnet_b0": 3.0,
    "mobilenet_v3_large": 3.0,
    "resnet50": 2.0,
    "resnet18": 2.0,
    "convnext_tiny": 1.5,
    "vit_b_16": 1.3,
}
"""How many times as many predictions as the stock handler ours is to give; 1.5 of other models."""
DRAWN = {"resnet50": 0.85, "resnet18": 0.75}
"""Overlays over our own predictions; drawing takes a larger share of a quicker model's time."""
EXPLAINED_BY_STOCK = ("resnet18", "resnet50", archives.DEMO)
"""Whose explanations of the stock handler are timed too; for a batch of a ViT these take 18 GB."""
PNG = "image/png"
STAGE = re.compile(r'^camserve_stage_seconds_(sum|count)\{[^}]*stage="(\w+)"[^}]*\} (\S+)', re.MULTILINE)
TAKEN = re.compile(r"^ts_inference_requests_total\{[^}]*\} (\S+)", re.MULTILINE)
FLUSH = 2.5
"""Seconds after which a monitor with an interval of one second has told what it knows."""


@contextmanager
def served(store: Path, names: Sequence[str]) -> Iterator[list[Server]]:
    """A server of its own for each archive, so that each worker has the threads that it would have alone."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(store, [name], config=CONFIG, port=0)) for name in names]


@contextmanager
def kept(store: Path | None) -> Iterator[Path]:
    """A folder for archives: the one that is given, or one that goes afterwards."""
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        store.mkdir(parents=True, exist_ok=True)
        yield store


def measure(model: str, rounds: int, seconds: float, say: Callable[[str], None], folder: Path | None = None) -> dict[str, Any]:
    """One model: predictions and explanations a second of ours and of the stock handler's, in turns."""
    with kept(folder) as store:
        say(f"{model}: packaging")
        archives.ours(store, model, None, *RUNTIME)
        names = [archives.stock(store, model), model, archives.variant(store, model, f"{model}_alone", batchSize=1)]
        picture = archives.photograph(store)
        size = picture.stat().st_size
        say(f"{model}: starting three servers")
        with served(store, names) as (stock, ours, alone):
            moved = _difference(f"{stock.url}/predictions/{names[0]}", f"{ours.url}/predictions/{model}", picture)
            work = _slices(names, [server.url for server in (stock, ours, alone)], picture, seconds)
            found = alternate(work, rounds, lambda text: say(f"{model}, {text}"))
            runtime = _runtime(ours, model)
            slow = None
            if model in EXPLAINED_BY_STOCK:
                say(f"{model}: the stock handler's explanations")
                slow = _burst(f"{stock.url}/explanations/{names[0]}", picture)
    told = conditions(
        model=f"{model}, {'ImageNet' if model == archives.DEMO else 'random'} weights",
        picture=f"photograph, JPEG, 640 x 480, {size / 1024:.0f} KiB",
        load=f"{wrk_version()}, one thread, {CONNECTIONS} connections, {seconds:g} s a slice, {rounds} rounds",
        server="one worker each, batchSize 8 and maxBatchDelay as packaged for both; monitoring as packaged (on)",
        runtime=f"{runtime}, which packaging chose; probabilities at most {moved:.0e} from the stock handler's",
        java=java_version(),
    )
    rates = {name: Spread.of(values).__dict__ for name, values in found.items()}
    if slow:
        rates["stock, explanations"] = Spread.of([slow]).__dict__
    return {"conditions": told, "rows": _rows(model, runtime, found, slow), "rates": rates, "moved": moved}


def _slices(names: Sequence[str], urls: Sequence[str], picture: Path, seconds: float) -> dict[str, Callable[[], float]]:
    """What is measured in turns: answers a second, or the median latency of a lone connection in seconds."""
    (stock, ours, alone), (stock_url, url, alone_url) = names, urls
    return {
        "stock, predictions": lambda: load(stock_url, stock, picture, seconds=seconds).rate,
        "ours, predictions": lambda: load(url, ours, picture, seconds=seconds).rate,
        "ours, explanations, JSON": lambda: load(url, ours, picture, seconds=seconds, share=1.0).rate,
        "ours, explanations, PNG": lambda: load(url, ours, picture, seconds=seconds, share=1.0, accept=PNG).rate,
        "lone prediction": lambda: load(alone_url, alone, picture, seconds=seconds / 2, connections=1).p50,
        "lone explanation": lambda: load(alone_url, alone, picture, seconds=seconds / 2, connections=1, share=1.0).p50,
    }


def _difference(one: str, other: str, picture: Path) -> float:
    """The largest difference between two answers' probabilities.

    Raises:
        RuntimeError: the classes or their order differ.
    """
    body = picture.read_bytes()
    first, second = (requests.post(url, data=body, timeout=120).json() for url in (one, other))
    if list(first) != list(second):
        raise RuntimeError(f"the predictions differ: {first} and {second}")
    return max(abs(first[label] - second[label]) for label in first)


def _burst(url: str, picture: Path, count: int = 8) -> float:
    """Answers a second of so many requests at once: the stock handler's take too long for slices of seconds.

    Raises:
        RuntimeError: one of them failed.
    """
    body = picture.read_bytes()
    with ThreadPoolExecutor(count) as threads:
        begun = time.perf_counter()
        answers = list(threads.map(lambda _: requests.post(url, data=body, timeout=600), range(count)))
        taken = time.perf_counter() - begun
    if any(answer.status_code != 200 for answer in answers):
        raise RuntimeError(f"the stock handler answers an explanation with {[answer.status_code for answer in answers]}")
    return count / taken


def _runtime(server: Server, model: str) -> str:
    """What computes the trunk in that server's worker, and its version."""
    (told,) = requests.get(f"{server.management_url}/models/{model}?customized=true", timeout=30).json()
    found = told["customizedMetadata"]["runtime"]
    return f"{found['name']} {found['version'].split('-')[0]}"


def _rows(model: str, runtime: str, found: Mapping[str, list[float]], slow: float | None) -> list[dict[str, Any]]:
    predictions = found["ours, predictions"]
    compared: list[tuple[str, list[float], list[float], float | None, str]] = [
        ("explanations/s (JSON) over our own predictions/s", found["ours, explanations, JSON"], predictions, 0.95, "least"),
        (
            "explanations/s (overlay PNG) over our own predictions/s",
            found["ours, explanations, PNG"],
            predictions,
            DRAWN.get(model),
            "least",
        ),
        (
            f"our predictions/s over the stock handler's, in {runtime.split(maxsplit=1)[0]}",
            predictions,
            found["stock, predictions"],
            OVER_STOCK.get(model, 1.5),
            "least",
        ),
        (
            "one connection, batchSize 1: explanation p50 over prediction p50",
            found["lone explanation"],
            found["lone prediction"],
            1.15,
            "most",
        ),
    ]
    if slow:
        words = "our explanations/s over the stock handler's (eight at once, one time)"
        compared.append((words, found["ours, explanations, JSON"], [slow] * len(predictions), 100, "least"))
    return [
        {"what": words, "goal": goal, "side": side, **Spread.of(ratios(above, below)).__dict__}
        for words, above, below, goal, side in compared
    ]


def profile(model: str, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Where a picture's time goes: stages inside the worker and what the processes use of the cores, for each kind of request."""
    with kept(None) as store:
        archives.ours(store, model, None, "--monitor", '{"rate": 1, "interval": 1}', *RUNTIME)
        names = [model, archives.stock(store, model)]
        picture = archives.photograph(store)
        with served(store, names) as (ours, stock):
            rows = []
            kinds = (
                ("predictions", 0.0, "*/*"),
                ("explanations, JSON", 1.0, "application/json"),
                ("explanations, PNG", 1.0, PNG),
            )
            for words, share, accept in kinds:
                say(f"{model}: profile of {words}")
                rows.append({"what": f"ours, {words}", **_profiled(ours, model, picture, seconds, share=share, accept=accept)})
            rows.append({"what": "stock, predictions", **_profiled(stock, names[1], picture, seconds, share=0.0, accept="*/*")})
            runtime = _runtime(ours, model)
    load_ = f"{CONNECTIONS} connections, {seconds:g} s each"
    told = conditions(model=model, load=load_, picture="photograph, JPEG, 640 x 480", runtime=runtime)
    return {"conditions": told, "rows_ms": rows}


def _profiled(server: Server, model: str, picture: Path, seconds: float, *, share: float, accept: str) -> dict[str, float]:
    """Milliseconds a picture: of the clock, of each stage, and of processor time that Java, the worker and wrk used."""
    load(server.url, model, picture, seconds=2, share=share, accept=accept)
    time.sleep(FLUSH)
    before, used, asked = _stages(server), _used(server), _requests(server)
    done = load(server.url, model, picture, seconds=seconds, share=share, accept=accept)
    spent = {name: value - used[name] for name, value in _used(server).items()}
    time.sleep(FLUSH)
    stages = {name: value - before.get(name, 0.0) for name, value in _stages(server).items()}
    per_picture = 1000 / (_requests(server) - asked)  # more than were answered: what wrk left in the queue is computed too
    return {
        "clock": 1000 / done.rate,
        **{f"stage {name}": value * per_picture for name, value in stages.items()},
        **{f"{name} used": value * per_picture for name, value in spent.items()},
        "wrk used": done.generator * seconds * 1000 / done.requests,
    }


def _requests(server: Server) -> float:
    """How many requests TorchServe took so far."""
    return sum(map(float, TAKEN.findall(requests.get(f"{server.metrics_url}/metrics", timeout=30).text)))


def _stages(server: Server) -> dict[str, float]:
    """Seconds that the stages took so far, all pictures and threads together."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
    return {stage: float(value) for kind, stage, value in STAGE.findall(text) if kind == "sum"}


def _used(server: Server) -> dict[str, float]:
    """Processor seconds that Java and its workers used so far."""
    java, *others = (psutil.Process(pid) for pid in server.pids)
    return {"Java": _seconds(java), "worker": sum(_seconds(each) for each in others)}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
