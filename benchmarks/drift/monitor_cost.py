"""What monitoring costs: batches with it and without it, in turns, inside one process.

    python benchmarks/drift/monitor_cost.py [--rounds 60] [--threads 1]
    python benchmarks/drift/monitor_cost.py --evidence    # what evidence costs, beside monitoring alone

The model is tuned as the handler does. Prints, for models with the closed form and without it, and batches of 1 and 8, the mean
milliseconds of a batch of predictions without monitoring and with it, the difference in percent with its 95 % interval
(bootstrap over pairs of neighbouring batches), and the share of the pictures that were measured: less than all where maps take
backward passes that the budget has no room for. `wall` is the time until the answers are there, `cpu` what the process used.
Means, not medians, because part of the work comes in lumps: statistics are computed for 64 pictures at a time. Pairs with a
batch of more than twice the median were disturbed by something else; they are left out and counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
import torchvision
from torch import nn

from benchmarks.drift import crops
from benchmarks.speed.conditions import processor
from camserve.capture.tuning.glibc import keep_freed_memory
from camserve.core.config import Config
from camserve.core.config.watching import Monitoring
from camserve.core.messages import Call
from camserve.explain.observer import NullObserver, Observer
from camserve.monitoring.evidence.keeper import Keeper
from camserve.monitoring.evidence.records import Source
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.monitor import CHUNK, Monitor
from camserve.monitoring.reference import Provenance
from camserve.monitoring.statistics import Scale
from camserve.pipeline.model import Model
from camserve.pipeline.pipeline import Pipeline
from camserve.tools.watching.baseline import Collector, build_reference


def demo() -> nn.Module:
    """EfficientNet-Lite0, the demo's: pooled and linear."""
    from camserve.tools.packaging.models.demo import load_demo  # noqa: PLC0415 it loads weights

    return load_demo().model


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "EfficientNet-Lite0, closed form": (demo, "features"),
    "ResNet-18, closed form": (torchvision.models.resnet18, "layer4"),
    "ResNet-50, closed form": (torchvision.models.resnet50, "layer4"),
    "ResNet-18, layer3, autograd": (torchvision.models.resnet18, "layer3"),
    "VGG-11, autograd": (torchvision.models.vgg11, "features"),
    "MobileNetV3-Large, autograd": (torchvision.models.mobilenet_v3_large, "features"),
}


def pipeline_of(model: nn.Module, layer: str) -> Pipeline:
    """A pipeline as the handler makes it."""
    return Model(model, config=Config(layers=(layer,)), tune=True).pipeline


def monitor_of(pipeline: Pipeline, calls: Sequence[Call]) -> Monitor:
    """A monitor with a reference, that exports into nothing; its thread is not started, `pairs` does its work."""
    scale = Scale(Config().mean, Config().std)
    collector = Collector(scale)
    pipeline.explainer.observer = collector
    for _ in range(13):
        pipeline.run(calls)
    reference = build_reference(collector.measurements(), collector.shares, Provenance("l", "m", "w"))
    return Monitor(Monitoring(1.0, 15.0), Exporter("m", "1", len), scale, reference)


def keeping(monitor: Monitor, folder: str) -> Monitor:
    """The same with evidence in a folder; its writer's thread is not started, `work` does its work."""
    config = Config.from_mapping({"evidence": {"to": folder}})
    source = Source("m", "1", "w", "gradcam++", "l", "softmax", None)
    exporter = Exporter("m", "1", len)
    keeper = Keeper(config, source, monitor._reference, exporter)
    return Monitor(Monitoring(1.0, 15.0), exporter, monitor._scale, monitor._reference, keeper=keeper)


def work(monitor: Monitor, due: float) -> bool:
    """Does what the threads of a monitor would do now; whether it is due to export."""
    if len(monitor._observations) >= CHUNK:
        monitor._digest()
    if time.monotonic() > due:
        monitor.flush()
    if monitor._keeper is not None:
        writer = monitor._keeper._writer
        if writer._queue or time.time() >= min(writer._due, writer._bounds.due):
            writer.take_turn()
    return time.monotonic() > due


def pairs(
    pipeline: Pipeline, monitor: Monitor, calls: Sequence[Call], rounds: int, without: Observer | None = None
) -> dict[str, Any]:
    """Seconds `[rounds, 2]` of batches without and with the monitor, in turns, which comes first by chance."""
    watchers = (without or NullObserver(), monitor)
    order = np.random.default_rng(0).permuted(np.tile([0, 1], (rounds, 1)), axis=1)
    dues = [time.monotonic()] * 2
    wall, cpu, measured = np.zeros((rounds, 2)), np.zeros((rounds, 2)), 0
    for place, turn in enumerate(order):
        for which in turn:
            pipeline.explainer.observer = watchers[which]
            begun, used = time.perf_counter(), time.process_time()
            waiting = len(monitor._observations)
            pipeline.run(calls)
            measured += len(monitor._observations) - waiting
            watcher = watchers[which]
            if isinstance(watcher, Monitor) and work(watcher, dues[which]):
                dues[which] = time.monotonic() + 15
            wall[place, which], cpu[place, which] = time.perf_counter() - begun, time.process_time() - used
    return {"wall": wall, "cpu": cpu, "measured": measured / (rounds * len(calls))}


def shown(seconds: Any) -> tuple[str, int]:
    """Means in milliseconds, and by how much the second is longer, with the interval; and how many pairs were left out."""
    calm = seconds[(seconds < 2 * np.median(seconds, axis=0)).all(1)]
    random = np.random.default_rng(0)
    drawn = calm[random.integers(0, len(calm), (2000, len(calm)))].sum(1)
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0] - 1, (0.025, 0.975))
    without, beside = calm.mean(0) * 1e3
    more = f"{beside / without - 1:+7.1%} ({low:+.1%} to {high:+.1%})"
    return f"{without:8.2f} {beside:8.2f} {more:28}", len(seconds) - len(calm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="pairs of batches of 8; of batches of 1, three times as many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="; ".join(MODELS))
    parser.add_argument("--evidence", action="store_true", help="compare monitoring with evidence to monitoring without")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}, {processor()},")
    print(f"{os.cpu_count()} cores, {options.threads} thread(s), load {load:.1f} when it began")
    print("monitored at rate 1.0; what the monitor's thread does is done after a batch here, and counts as that batch's")
    print(f"{'':34}{'batch':>6}{'':>5} {'without':>8} {'with':>8} {'more':>7}{'':22}{'measured':>8} {'pairs':>6} {'left out':>8}")
    pictures = list(crops.traffic(8, dict.fromkeys(crops.NAMES, 1.0), 1))
    for name in options.models:
        make, layer = MODELS[name]
        torch.manual_seed(0)
        pipeline = pipeline_of(make(), layer)
        for batch, rounds in ((1, 3 * options.rounds), (8, options.rounds)):
            calls = [Call(False, {}, {"body": picture}) for picture in pictures[:batch]]
            monitor = monitor_of(pipeline, [Call(False, {}, {"body": picture}) for picture in pictures])
            with tempfile.TemporaryDirectory() as folder:
                watchers = (keeping(monitor, folder), monitor) if options.evidence else (monitor, None)
                found = pairs(pipeline, watchers[0], calls, rounds, watchers[1])
                kept = len(list(Path(folder).rglob("*-*-*-*.json")))
            if options.evidence:
                print(f"{name:34}{batch:6} kept {kept} of {rounds * batch} pictures")
            for kind in ("wall", "cpu"):
                told, left_out = shown(found[kind])
                print(f"{name:34}{batch:6}{kind:>5} {told} {found['measured']:8.0%} {rounds:6} {left_out:8}", flush=True)


if __name__ == "__main__":
    main()
