#!/usr/bin/env python3
"""Readiness of the server in this container: exit status 0 when every worker of every model has loaded it, 1 otherwise.

`/ping` does not tell that: it answers 200 while a model that has never loaded is tried again. The management address does,
and it is on loopback, so this runs beside the server, as the image's health check and as Kubernetes' probe. It needs no package
but Python's own, because every probe starts it anew: with `requests` and the tools' own code a probe takes twice as long. Where
the server wants tokens they are read from key_file.json, which lies in the folder where it was started. With models' names as
arguments only those count.

With `--any` one ready worker of each version is enough: when one of several dies, the others go on answering while TorchServe
starts it anew. Kubernetes' readiness probe asks so; its startup probe and the image's health check want all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

MANAGEMENT = os.environ.get("CAMSERVE_MANAGEMENT", "http://127.0.0.1:8081")
KEYS = Path("key_file.json")
TRIES, PAUSE = 10, 0.1
"""How often, and with how many seconds in between, the file of tokens is read while TorchServe writes it."""
OPEN = build_opener(ProxyHandler({})).open  # there is no proxy between this and its own container


def main(argv: list[str]) -> int:
    """Prints `ready` or why it is not; returns the exit status."""
    parser = argparse.ArgumentParser(description="Whether the server in this container is ready.", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="only these models count")
    parser.add_argument("--any", action="store_true", help="one ready worker of each version is enough")
    options = parser.parse_args(argv)
    try:
        why = find_unready(options.names, enough=1 if options.any else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{MANAGEMENT} does not tell: {type(error).__name__}"
    print(why or "ready")
    return 1 if why else 0


def find_unready(names: list[str], enough: int | None = None) -> str:
    """Says which of the models `names` (all for none) has not `enough` ready workers, or all; empty where none lacks any."""
    names = names or [each["modelName"] for each in get("/models?limit=1000")["models"]]
    if not names:
        return "no model"
    for name in names:
        for version in get(f"/models/{quote(name, safe='')}/all"):
            ready = sum(worker["status"] == "READY" for worker in version["workers"])
            workers = max(1, version["minWorkers"])
            if ready < (enough or workers):
                return f"{name} {version['modelVersion']}: {ready} of {workers} workers are ready"
    return ""


def get(path: str) -> Any:
    """Asks the management address, with a fresh token where the old one has expired."""
    try:
        return ask(path, "management")
    except HTTPError as error:
        if error.code != 400 or not KEYS.is_file():
            raise
    ask("/token?type=management", "API")
    for _ in range(TRIES):
        try:
            return ask(path, "management")
        except HTTPError:  # the new token is not in the file yet
            time.sleep(PAUSE)
    return ask(path, "management")


def read_token(key: str) -> str:
    """Reads one of the tokens. TorchServe rewrites their file in place, so a reader may get a part of it, and reads again."""
    for _ in range(TRIES):
        try:
            return str(json.loads(KEYS.read_text("utf-8"))[key]["key"])
        except ValueError:
            time.sleep(PAUSE)
    return str(json.loads(KEYS.read_text("utf-8"))[key]["key"])


def ask(path: str, key: str) -> Any:
    """Asks once, with the token `key` where the server has tokens."""
    request = Request(MANAGEMENT + path)  # noqa: S310 the address is the container's own
    if KEYS.is_file():
        request.add_header("Authorization", f"Bearer {read_token(key)}")
    with OPEN(request, timeout=5) as answer:
        text = answer.read()
    return json.loads(text) if text.strip() else None  # an empty line, where a token was asked for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
