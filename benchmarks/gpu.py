"""The engine and a server on a GPU, in one call: checks, ratios, peak memory, where the time goes, JPEG decoding.

    python benchmarks/gpu.py [--batch 64] [--rounds 20] [--live]

Checks first that maps on the GPU are those of the CPU. Then ResNet-50 in float32, bfloat16 and float16: explaining over the plain
forward pass (`inference_mode`, the same precision and memory format, pictures on the GPU already), and the peak memory of the one
over that of the other; the time of each step from JPEG files to overlays; and JPEG decoding on the GPU (torchvision's
nvJPEG path) beside Pillow's in threads. `--live` serves it too (needs wrk): pictures a second with 1, 2 and 4 workers.
Prints everything and writes nothing. Without a CUDA device it says so and ends with status 1. It has not run on a card yet: only
its parts were tried, on a CPU that stood in for one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speed.conditions import Spread, alternate, conditions, ratios
from benchmarks.speed.engine import Ours, Run, pictures_of, resnet50
from benchmarks.speed.served import archives
from camserve.capture.precision import precision_context
from camserve.core.config import PRECISIONS, Config
from camserve.explain.ranking import Task
from camserve.pictures import render
from camserve.pictures.decode import open_picture
from camserve.pictures.preprocess import Preprocess

T = TypeVar("T")

AGREE = {"float32": 1e-2, "bfloat16": 0.15, "float16": 0.05}
"""How far a heatmap may be from the CPU's. TorchServe allows TF32 on Ampere and later, whose products have ten bits."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; the exit status is 1 without a device, or where a map is wrong."""
    options = _options(argv)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return 1
    device = torch.device("cuda", 0)
    torch.set_float32_matmul_precision("high")  # as TorchServe's base handler does
    for name, value in conditions(**_device(device), batch=options.batch, rounds=options.rounds).items():
        print(f"{name}: {value}")
    good = check(device)
    engine(device, options.batch, options.rounds)
    steps(device, options.batch, options.rounds)
    decoding(device, options.batch, options.rounds)
    if options.live:
        live(options.batch)
    return 0 if good else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--live", action="store_true", help="serve it too")
    return parser.parse_args(argv)


def _device(device: torch.device) -> dict[str, object]:
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return {"GPU": f"{found.name}, {memory}", "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}


def _timed(run: Run) -> Callable[[], float]:
    """Seconds until the device has done all of it."""

    def timed() -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    return timed


def check(device: torch.device) -> bool:
    """Heatmaps on the GPU against the CPU's in float32, by autograd and in closed form."""
    pictures = pictures_of(4)
    want = [Task("layer4", "gradcam++", (1, 22))] * 4
    reference = _maps(Ours(resnet50(channels_last=False), False, tune=False, closed=False), pictures, want)
    good = True
    for precision in PRECISIONS:
        for closed in (True, False):
            ours = Ours(resnet50(channels_last=False), None, tune=True, closed=closed, device=device, precision=precision)
            moved = float(np.abs(_maps(ours, pictures, want) - reference).max())
            good &= moved <= AGREE[precision]
            form = "closed form" if closed else "autograd"
            word = "as on the CPU" if moved <= AGREE[precision] else "WRONG"
            print(f"check {precision}, {form}: heatmaps within {moved:.1e} of the CPU's: {word}")
    return good


def _maps(ours: Ours, pictures: Tensor, wants: Sequence[Task]) -> NDArray[np.float32]:
    seen = ours.explainer.explain(list(pictures), wants)
    return np.stack([found.heatmap for each in seen for found in each.explanations])  # type: ignore[union-attr]


def engine(device: torch.device, batch: int, rounds: int) -> None:
    """Time and peak memory of explaining over predicting."""
    for precision in PRECISIONS:
        for closed in (True, False):
            ours = Ours(resnet50(channels_last=False), None, tune=True, closed=closed, device=device, precision=precision)
            channels_last = ours.backend.channels_last
            pictures = pictures_of(batch, channels_last).to(device)
            runs = {"plain": _plain(ours, pictures, precision, device), "explain": ours.explain(pictures)}
            found = alternate({name: _timed(run) for name, run in runs.items()}, rounds)
            peaks = {name: _peak(run, device) for name, run in runs.items()}
            ratio = Spread.of(ratios(found["explain"], found["plain"]))
            print(
                f"{precision}, {'closed form' if closed else 'autograd'}, {'channels_last' if channels_last else 'contiguous'}: "
                f"plain {1000 * Spread.of(found['plain']).median:.1f} ms, "
                f"explaining {ratio.shown(3)} of it (goal 1.10), "
                f"peak memory {peaks['explain'] / peaks['plain']:.3f} of {peaks['plain'] / 2**20:.0f} MiB (goal 1.15)",
                flush=True,
            )


def _plain(ours: Ours, pictures: Tensor, precision: str, device: torch.device) -> Run:
    """A prediction: the forward pass, and its scores on the CPU."""
    context = precision_context(precision, device)

    def run() -> Tensor:
        with torch.inference_mode(), context():
            return ours.model(pictures).float().cpu()

    return run


def _peak(run: Run, device: torch.device) -> int:
    """Most bytes that were allocated at once while it ran, the model's own included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device)


@dataclass
class Clock:
    """Seconds of each step, by name, over the rounds."""

    device: torch.device
    seconds: dict[str, list[float]]

    def step(self, name: str, work: Callable[[], T]) -> T:
        """Does one step and waits for the device."""
        torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        found = work()
        torch.cuda.synchronize(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        return found


def steps(device: torch.device, batch: int, rounds: int) -> None:
    """What each step takes for one batch, one after the other: in a server, decoding and rendering use the same threads."""
    config = Config()
    preprocess, data = Preprocess(config), _jpeg()
    ours = Ours(resnet50(channels_last=False), None, tune=True, closed=False, device=device, precision="bfloat16")
    clock = Clock(device, {})
    rows, targets = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    heat = np.random.default_rng(0).random((7, 7), dtype=np.float32)
    with ThreadPoolExecutor(os.cpu_count()) as threads:

        def overlay(picture: NDArray[np.uint8]) -> bytes:
            view = preprocess.view(picture.shape[1], picture.shape[0])
            assert view is not None
            return render.encode(render.draw_overlay(picture, heat, view, "viridis", 0.5), "png")

        for turn in range(rounds + 1):
            if turn == 1:
                clock.seconds.clear()
            pictures = clock.step(
                "decode, threads", lambda: list(threads.map(lambda _: open_picture(data, config), range(batch)))
            )
            tensors = clock.step("resize and normalise, threads", lambda: list(threads.map(preprocess, pictures)))  # noqa: B023
            stacked = clock.step("stack", lambda: torch.stack(tensors))  # noqa: B023
            moved = clock.step("copy to the GPU", lambda: stacked.to(device))  # noqa: B023
            captured = clock.step("forward", lambda: ours.backend.capture.forward(moved, ["layer4"]))  # noqa: B023
            clock.step("backward", lambda: captured.gradients("layer4", rows, targets))  # noqa: B023
            arrays = [np.asarray(picture) for picture in pictures]
            clock.step("overlay and PNG, threads", lambda: list(threads.map(overlay, arrays)))  # noqa: B023
    print(f"steps of a batch of {batch}, bfloat16, JPEG 640 x 480, {os.cpu_count()} threads:")
    for name, seconds in clock.seconds.items():
        print(f"  {name}: {1000 * Spread.of(seconds).median:.1f} ms")


def decoding(device: torch.device, batch: int, rounds: int) -> None:
    """JPEG to RGB pixels: torchvision's nvJPEG path against Pillow in threads. Their pixels differ by rounding."""
    from torchvision.io import decode_jpeg  # noqa: PLC0415 it needs torchvision's own library

    data, config = _jpeg(), Config()
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8)] * batch
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        runs: dict[str, Run] = {
            "nvJPEG": lambda: decode_jpeg(encoded, device=device),
            "Pillow, threads": lambda: list(threads.map(lambda _: open_picture(data, config), range(batch))),
        }
        try:
            found = alternate({name: _timed(run) for name, run in runs.items()}, rounds)
        except RuntimeError as error:
            print(f"decoding: torchvision has no nvJPEG here: {str(error).splitlines()[0]}")
            return
    for name, seconds in found.items():
        print(f"decoding, {name}: {batch / Spread.of(seconds).median:.0f} pictures/s")
    print(f"decoding: nvJPEG over Pillow: {Spread.of(ratios(found['Pillow, threads'], found['nvJPEG'])).shown()} times as fast")
    pixels = decode_jpeg(encoded[0], device=device).permute(1, 2, 0).cpu().numpy().astype(int)
    moved = np.abs(pixels - np.asarray(open_picture(data, config)).astype(int))
    print(f"decoding: pixels differ by {moved.mean():.2f} of 255 on average, {moved.max()} at most")


def _jpeg() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return archives.photograph(Path(folder)).read_bytes()


def live(batch: int, seconds: float = 10, connections: int = 256) -> None:
    """Pictures a second of a real server, as its workers grow: the count that no longer gains saturates the card or the cores."""
    from benchmarks.speed.live import served  # noqa: PLC0415
    from benchmarks.speed.served.load import load  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        archives.ours(store, "resnet50", None, "--batch-size", str(batch), "--max-batch", str(batch))
        picture = archives.photograph(store)
        for workers in (1, 2, 4):
            name = archives.variant(store, "resnet50", f"resnet50_{workers}", minWorkers=workers, maxWorkers=workers)
            with served(store, [name]) as (server,):
                for words, share in (("predictions", 0.0), ("explanations", 1.0)):
                    load(server.url, name, picture, seconds=3, connections=connections, share=share)
                    found = load(server.url, name, picture, seconds=seconds, connections=connections, share=share)
                    print(f"live, {workers} workers: {found.rate:.0f} {words}/s, p50 {1000 * found.p50:.0f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(main())
