"""Evidence in a store that speaks S3: written, listed, read, deleted, kept by a worker; and lost, counted, once the store is dead.

`tests/monitoring/evidence/test_s3.py` runs it by .venv-s3's Python; it says what came of it as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError
from tests.support.monitoring.keeping import Kept, at, record, silent, write
from tests.support.processes.waiting import HANG, wait_until

from camserve.monitoring.evidence.reading import delete_entries, list_beside, list_entries, list_models, read_record
from camserve.monitoring.evidence.stores import open_store

PLACE = "s3://bucket/kept"


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """A store on this machine, with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(_make_bucket)
            yield
        finally:
            process.kill()


def _make_bucket() -> bool:
    try:
        boto3.client("s3").create_bucket(Bucket="bucket")
    except BotoCoreError:  # the store is not there yet
        time.sleep(0.2)
        return False
    return True


def store_and_read() -> dict[str, Any]:
    """What one store writes, and another one sees and deletes."""
    store, other = open_store(PLACE), open_store(PLACE)
    empty = [list_models(store), list_entries(store)]
    entry = write(store, record(at(1, 2)))
    store.write(f"m/2026-01-02/{entry.name}.mark-1.json", b"{}")
    seen = {"listed": list_entries(other) == [entry], "beside": len(list_beside(other, entry)), "models": list_models(other)}
    read = {"same": read_record(other, entry) == record(at(1, 2)), "deleted": delete_entries(other, [entry])}
    return {"empty": empty, **seen, **read, "left": store.list_files("m/2026-01-02")}


def keep() -> dict[str, Any]:
    """What a worker keeps."""
    kept = Kept(PLACE)
    kept.take(silent(1), silent(2))
    wait_until(lambda: len(list_entries(open_store(PLACE))) == 2)
    return {"targets": sorted(entry.target for entry in kept.entries()), "failed": kept.told("dropped", "failed")}


def lose() -> dict[str, Any]:
    """What a worker says of a store that is gone."""
    kept, taken = Kept(PLACE), threading.Event()
    write = kept.store.write
    kept.store.write = lambda path, data: taken.wait(HANG) and write(path, data)
    kept.take(silent(1))  # comes back, though the store does not
    taken.set()
    wait_until(lambda: kept.keeper._writer._pause > 0)
    return {"failed": kept.told("dropped", "failed")}


if __name__ == "__main__":
    with serving():
        found = {**store_and_read(), **{f"kept {name}": value for name, value in keep().items()}}
    found |= {f"lost {name}": value for name, value in lose().items()}
    sys.stdout.write(json.dumps(found) + "\n")
