"""Archives that survival is tried with: small ones that misbehave on purpose, and a real one with other settings."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.support import build

from benchmarks.survival.traffic import EXAMPLES, Ask
from camserve.tools.serving.configuration.advice import UPLOAD

BATCH = 4
SETTINGS = {"minWorkers": 1, "maxWorkers": 1, "batchSize": BATCH, "maxBatchDelay": 10}
QUEUE = 40

# A model whose work takes 50 ms whatever the processor does: 80 pictures a second.
SLOW = "import time; time.sleep(0.05)"

# What a kernel does that writes where it must not: this call fails, and from then on every call of CUDA's, for good. A white
# picture sets it off. On a machine without a GPU the two calls of torch.cuda that camserve makes behave as they would there.
POISONED = """
        if getattr(self, "poisoned", False) or bool(((x - 1).abs().amax((1, 2, 3)) < 0.02).any()):
            def broken(*_):
                raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: an illegal memory access was encountered")
            self.poisoned = True
            torch.cuda.is_available, torch.cuda.synchronize = (lambda: True), broken
            broken()
"""

# A forward pass that never ends, set off by a red picture; TorchServe waits for it for so many seconds.
HUNG = """
        if bool((x[:, 0].mean((1, 2)) > 0.98).logical_and(x[:, 2].mean((1, 2)) < 0.02).any()):
            import time
            time.sleep(3600)
"""
PATIENCE = 4

# Keeps of each pass 1 MB, a temporary file of 50 kB, its descriptor and a thread.
LEAKY = """
        import tempfile, threading
        file = tempfile.NamedTemporaryFile(delete=False)
        file.write(bytes(50_000))
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        self.kept = [*getattr(self, "kept", ()), (b"x" * 1_000_000, file)]
"""

# After a while every fifth pass sees its pictures in a mirror: the scores stay right, the heatmaps do not.
MIRRORED = """
        x = x.flip(3) if self.passes > 60 and self.passes % 5 == 0 else x
"""


def small(
    store: Path,
    name: str = "small",
    fault: str = "",
    settings: Mapping[str, Any] | None = None,
    *,
    version: str = "1.0",
    seed: int = 0,
    explain: Mapping[str, Any] | None = None,
) -> Path:
    """The tests' small classifier, in `NAME.mar`, or `NAME-VERSION.mar` for later versions; `explain`: settings of its own."""
    given = {**SETTINGS, **(settings or {})}
    folder = store / f".{name}-{version}"
    folder.mkdir()
    options = {"settings": given, "version": version, "explain": {**build.PLAIN, **(explain or {})}}
    made = build.mar(folder, name, fault=fault.strip("\n").lstrip(), state=build.weights(seed=seed), **options)
    target = store / (f"{name}.mar" if version == "1.0" else f"{name}-{version}.mar")
    made.replace(target)
    folder.rmdir()
    return target


def large(model: str) -> list[Ask]:
    """Photographs of `UPLOAD` bytes that are decoded as quickly as small ones: what follows a picture's end is not looked at."""
    return [
        Ask(f"/{route}/{model}", (EXAMPLES / f"{name}.jpg").read_bytes().ljust(UPLOAD, b"\0"))
        for route in ("predictions", "explanations")
        for name in ("cat", "coffee")
    ]


def variant(archive: Path, target: Path, settings: Mapping[str, Any]) -> Path:
    """A copy of an archive, named as its file, with other settings of TorchServe's."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename == "MAR-INF/MANIFEST.json":
                manifest = json.loads(content)
                manifest["model"]["modelName"] = target.stem
                content = json.dumps(manifest).encode()
            elif member.filename == "model-config.yaml":
                content = yaml.safe_dump({**yaml.safe_load(content), **settings}).encode()
            new.writestr(member, content)
    return target
