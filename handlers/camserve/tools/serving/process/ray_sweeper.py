"""Waits for a server's end, whatever ends it, and removes what Ray leaves then: `ray_sweeper.py FOLDER`, until the end of input.

HAProxy survives a Ray that is killed, and goes on listening. It names its Ray's folder on the command line.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

PATIENCE = 15.0
"""Seconds in which Ray's own processes end by themselves once their server is gone."""


NAMES = ("haproxy", "raylet", "gcs_server")


def find(folder: str, names: Sequence[str]) -> list[psutil.Process]:
    """Return the processes of these names with the folder on their command line."""
    processes = psutil.process_iter(["name", "cmdline"])
    return [each for each in processes if each.info["name"] in names and folder in " ".join(each.info["cmdline"] or ())]


def _kill(processes: Sequence[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.Error):  # it has ended
            each.kill()


def main(folder: str) -> None:
    """Wait, then end what is left and remove the folder."""
    sys.stdin.read()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and find(folder, NAMES):
        _kill(find(folder, NAMES[:1]))
        time.sleep(0.1)
    _kill(find(folder, NAMES))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
