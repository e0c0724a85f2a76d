#!/usr/bin/env python3
"""Writes the images' hashed requirements: requirements.txt, requirements-asgi.txt, requirements-ray.txt, and
requirements-torch.txt or its other form.

They hold what a server needs, the extras `serve`, `asgi` and `ray` of `pyproject.toml`, at the releases of `constraints.txt`, for
Debian 12's Python 3.11 on 64-bit Linux. torch and what only its CUDA builds need stand in a file of their own, because wheels of
one release differ between indexes and so do their hashes. `--torch-index URL` (PyTorch's CPU index, say) writes
requirements-torch-index.txt, which the Dockerfile takes when it is built with `--build-arg TORCH_INDEX=URL`. Needs uv
(`pip install uv`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = ("torch", "torchvision")
ONLY_CUDA = re.compile(r"nvidia-|cuda-|triton$")
LEFT_OUT = "enum-compat"  # the archiver asks for it; it does nothing since Python 3.4, and is no wheel
TARGET = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
HEAD = """# {what}
# Made by deploy/lock.py of pyproject.toml and constraints.txt, for `pip install --require-hashes --no-deps -r`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-index", metavar="URL", help="lock torch and torchvision as this index has them, nothing else")
    parser.add_argument("--output", type=Path, default=ROOT / "deploy", metavar="DIR", help="where to (default: deploy)")
    options = parser.parse_args(argv)
    if options.torch_index:
        torch = lock_torch(options.torch_index)
        write(options.output / "requirements-torch-index.txt", "torch and torchvision from the index of TORCH_INDEX.", torch)
        return 0
    entries = lock(ROOT / "pyproject.toml", "--extra", "serve")
    torch = {name: entry for name, entry in entries.items() if name in TORCH or ONLY_CUDA.match(name)}
    write(options.output / "requirements-torch.txt", "torch and torchvision, for GPU and CPU, and CUDA's own libraries.", torch)
    rest = {name: entry for name, entry in entries.items() if name not in torch}
    write(options.output / "requirements.txt", "What the image holds beside torch and torchvision.", rest)
    asgi = {name: entry for name, entry in lock(ROOT / "pyproject.toml", "--extra", "asgi").items() if name not in torch}
    write(options.output / "requirements-asgi.txt", "What the image without Java holds beside torch and torchvision.", asgi)
    more = ("-c", str(ROOT / "tests" / "support" / "environments" / "ray" / "requirements.txt"))
    ray = {name: entry for name, entry in lock(ROOT / "pyproject.toml", "--extra", "ray", *more).items() if name not in torch}
    write(options.output / "requirements-ray.txt", "What the image with Ray holds beside torch and torchvision.", ray)
    return 0


def lock_torch(index: str) -> dict[str, str]:
    """Returns the entries of torch and torchvision alone, as `index` has them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.txt")
        source.write_text("\n".join(TORCH))
        return lock(source, "--no-deps", "--default-index", index)


def lock(source: Path, *options: str) -> dict[str, str]:
    """Returns each package that the requirements of `source` come to, with its pin and hashes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.txt")
        command = ["uv", "pip", "compile", str(source), "-o", str(target), "-c", str(ROOT / "constraints.txt"), "--quiet"]
        subprocess.run([*command, "--generate-hashes", "--no-annotate", "--no-header", *TARGET, *options], check=True)
        return dict(_split(target.read_text("utf-8")))


def _split(text: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"\n(?=\S)", text.strip()):
        name = entry.partition("==")[0]
        if "--hash=" not in entry:
            raise SystemExit(f"error: the index tells no hash of {name}")
        if name != LEFT_OUT:
            yield name, entry


def write(path: Path, what: str, entries: dict[str, str]) -> None:
    """Writes a requirements file of `entries`; `what` says what they are."""
    path.write_text(HEAD.format(what=what) + "\n".join(entries.values()) + "\n", encoding="utf-8")
    print(f"{path}: {len(entries)} packages", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
