#!/usr/bin/env python3
"""Tries the built image as an engine would run it: no root, nothing writable but /tmp, no capabilities, a network of its own,
and no pidfd_getfd, which engines' seccomp profiles forbid (so a stop cannot close the port).

    buildah bud --format docker -t camserve .
    deploy/try_image.py --model-store DIR [pytest's arguments]
    deploy/try_image.py --model-store DIR --image localhost/camserve:asgi

Starts it, waits until it is ready, asks with and without a token (the target asgi has none), stops it under load, and prints what
it found; then starts it without tokens and runs the tests of the contract from outside against it (all but gRPC's, which the
image does not publish). The folder must hold the archives that `tests/conftest.py` packages. Needs root, buildah and bubblewrap.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

ROOT = Path(__file__).resolve().parent.parent
URL = "http://127.0.0.1:8080"
CAT = (ROOT / "examples" / "cat.jpg").read_bytes()
TESTS = ("tests/promises/contract", "tests/promises/safety/test_abuse.py")
FORBIDDEN = 438
"""pidfd_getfd's number on x86-64, the image's only architecture."""
CLUSTER = ("--config", "/opt/camserve/deploy/torchserve/cluster.properties")


def main(argv: Sequence[str] | None = None) -> int:
    """Everything; the exit status of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, required=True, metavar="DIR", help="archives, mounted at /models")
    parser.add_argument("--image", default="localhost/camserve", help="default: localhost/camserve")
    parser.add_argument("--no-tests", action="store_true", help="only start, ask and stop")
    options, rest = parser.parse_known_args(argv)
    if not os.environ.get("CAMSERVE_OWN_NETWORK"):
        return in_own_network(sys.argv)
    with image(options.image) as (folder, config):
        readable(folder / "opt", options.model_store)
        container = Container(folder, config, options.model_store.resolve())
        tokens = "asgi" not in config["Entrypoint"]
        with container.started("--models", "efficientnet_lite0"):
            ask(container, tokens)
            look_inside(container)
            stop_under_load(container)
        if options.no_tests:
            return 0
        with container.started(*(CLUSTER if tokens else ())):
            environment = os.environ | {"CAMSERVE_URL": URL, "CAMSERVE_LOG": container.log.name}
            command = [sys.executable, "-m", "pytest", "-q", "-m", "live", "-k", "not grpc", *(rest or TESTS)]
            return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def in_own_network(arguments: Sequence[str]) -> int:
    """This program again, in a network that holds nothing but its own loopback."""
    command = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--cap-add", "ALL", "--setenv", "CAMSERVE_OWN_NETWORK", "1"]
    return subprocess.run([*command, sys.executable, *arguments], check=False).returncode


def readable(*folders: Path) -> None:
    """Asserts that everybody may read all that lies there: bubblewrap's user 10001 owns it, an engine's does not."""
    closed = ["(", "!", "-perm", "-o=r", "-o", "-type", "d", "!", "-perm", "-o=x", ")", "!", "-type", "l"]
    found = subprocess.run(["find", *map(str, folders), *closed], check=True, capture_output=True, text=True).stdout
    assert not found, f"not readable for user 10001:\n{found}"


def forbidding(number: int) -> bytes:
    """A seccomp filter (classic BPF) by which one system call fails with EPERM."""
    load, equal, end, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
    steps = ((load, 0, 0, 0), (equal, 0, 1, number), (end, 0, 0, refuse), (end, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def buildah(*arguments: str) -> str:
    """What a buildah command prints."""
    return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def image(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where the image's files are mounted, and its configuration."""
    container = buildah("from", "--pull-never", name)
    try:
        config = json.loads(buildah("inspect", container))["Docker"]["config"]
        folder = Path(buildah("mount", container))
        (folder / "models").mkdir(exist_ok=True)  # as engines make mount points
        yield folder, config
    finally:
        buildah("rm", container)


class Container:
    """One run after another of the image whose files are in `folder`."""

    def __init__(self, folder: Path, config: dict[str, Any], store: Path) -> None:
        self.config, self.store, self.folder = config, store, folder
        self.keys: dict[str, dict[str, str]] = {}

    @property
    def bearer(self) -> dict[str, str]:
        """The header with the token, where there is one."""
        return {"Authorization": f"Bearer {self.keys['inference']['key']}"} if self.keys else {}

    @contextmanager
    def started(self, *arguments: str) -> Iterator[None]:
        """Runs the entry point with `arguments` until it is ready; afterwards it is gone, whatever happened."""
        environment = [word for pair in self.config["Env"] for word in ("--setenv", *pair.split("=", 1))]
        user, _, group = self.config["User"].partition(":")
        box = ["bwrap", "--die-with-parent", "--as-pid-1", "--new-session"]
        box += ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        box += [
            "--uid",
            user,
            "--gid",
            group,
            "--cap-drop",
            "ALL",
            "--clearenv",
            *environment,
            "--chdir",
            self.config["WorkingDir"],
        ]
        box += ["--ro-bind", str(self.folder), "/", "--ro-bind", str(self.store), "/models"]
        with tempfile.NamedTemporaryFile("w+") as log, tempfile.TemporaryFile() as filters:
            filters.write(forbidding(FORBIDDEN))
            filters.seek(0)
            box += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "--seccomp", str(filters.fileno())]
            command = [*box, *self.config["Entrypoint"], *arguments]
            began = time.monotonic()
            self.log = log
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[filters.fileno()])
            try:
                health = self.wait_ready()
                print(f"ready after {time.monotonic() - began:.1f} s, by its health check ({health} times not yet before)")
                yield
            finally:
                self.process.kill()
                self.process.wait()

    @property
    def init(self) -> psutil.Process:
        """Process 1 inside."""
        end = time.monotonic() + 10
        while not (children := psutil.Process(self.process.pid).children()):
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)
        return children[0]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as `docker exec` runs it."""
        join = [
            "nsenter",
            "-t",
            str(self.init.pid),
            "-U",
            "-m",
            "-p",
            "--preserve-credentials",
            f"--wdns={self.config['WorkingDir']}",
        ]
        environment = dict(pair.split("=", 1) for pair in self.config["Env"])
        return subprocess.run([*join, *command], env=environment, capture_output=True, text=True, check=False)

    def wait_ready(self) -> int:
        """Asks the image's health check until it says yes; how often it said no."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        for refusals in range(240):
            assert self.process.poll() is None, self.said()
            if self.run(*command).returncode == 0:
                return refusals
            time.sleep(0.5)
        raise SystemExit(f"error: not ready\n{self.said()}")

    def said(self) -> str:
        """The log so far."""
        self.log.seek(0)
        return self.log.read()


def ask(container: Container, tokens: bool) -> None:
    """A request needs a token where there are any; the doctor finds nothing wrong."""
    if tokens:
        container.keys = json.loads(container.run("cat", "key_file.json").stdout)
        refused = requests.put(f"{URL}/explanations/efficientnet_lite0", data=CAT, timeout=60)
        assert refused.status_code == 400, refused.text
        print(f"without a token: 400 {refused.json()['type']}")
    answered = requests.put(f"{URL}/explanations/efficientnet_lite0", data=CAT, headers=container.bearer, timeout=60)
    assert answered.status_code == 200, answered.text
    print(f"answered: {answered.json()['classes'][0]}")
    key_file = ("--token-file", "key_file.json") if tokens else ()
    doctor = container.run("python3", "/opt/camserve/scripts/doctor.py", URL, *key_file)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def look_inside(container: Container) -> None:
    """What runs is no root, has no capability, and writes nowhere but to /tmp."""
    assert container.run("id", "-u").stdout.strip() == "10001"
    for path in ("/opt/camserve/x", "/models/x", "/x"):
        assert "Read-only" in container.run("touch", path).stderr, path
    status = Path(f"/proc/{container.init.pid}/status").read_text()
    assert not re.search("CapEff:\\s*[^0\\s]", status.split("CapBnd")[0])
    assert re.search("Seccomp:\\s*2", status)
    children = container.init.children(recursive=True)
    print("processes:", ", ".join(f"{each.name()} {each.memory_info().rss / 2**20:.0f} MiB" for each in children))


def stop_under_load(container: Container) -> None:
    """SIGTERM to process 1 while requests are in flight: each is answered, then the exit status is 0."""
    headers = {**container.bearer, "content-type": "application/json"}
    body = json.dumps({"data": base64.b64encode(CAT).decode(), "top_k": 10, "overlay": True})

    def one(_: int) -> int:
        return requests.post(f"{URL}/explanations/efficientnet_lite0", data=body, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(one, index) for index in range(16)]
        time.sleep(0.5)
        waiting = sum(not answer.done() for answer in answers)
        began = time.monotonic()
        container.init.send_signal(signal.SIGTERM)
        statuses = [answer.result() for answer in answers]
        status = container.process.wait(60)
    took = time.monotonic() - began
    print(f"stopped with {waiting} of 16 requests open: answers {set(statuses)}, exit status {status} after {took:.1f} s")
    assert (set(statuses), status) == ({200}, 0)
    lines = container.said().splitlines()
    records = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert not any(key["key"] in line for key in container.keys.values() for line in lines)
    print(f"log: {len(lines)} lines, each an object; no token among them")


if __name__ == "__main__":
    sys.exit(main())
