"""One explanation from an unpacked archive that sees itself, TorchServe's environment, and what its requirements name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .modules import Hiding, place, server_modules, top_modules
from .requirements import read_requirements
from .worker import Row, ask, check_prepared, load_service, words


def explain(directory: str, picture: str) -> dict[str, Any]:
    """One explanation of `picture` by the unpacked archive: `{"status", "body"}`, or `{"error"}` in the worker's own words."""
    folder = Path(directory).resolve()
    own, server = top_modules(folder), server_modules()
    wanted = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))["model"].get("requirementsFile")
    if wanted:
        server |= read_requirements(folder / wanted).modules
    sys.path.insert(0, str(folder))
    Hiding(lambda name: name in own or name in server)
    try:
        service = load_service(folder)
        check_prepared(service)
        (response,) = ask(service, [Row({"body": bytearray(Path(picture).read_bytes())}, {"X-Explain-Top-K": "1"}, explain=True)])
    except Exception as error:  # noqa: BLE001 the archive's handler may raise anything
        return {"error": words(error)}
    for name in sorted(own & set(sys.modules)):
        if not place(sys.modules[name]).is_relative_to(folder):
            return {"error": f"the module {name} was not loaded from the archive"}
    return {"status": response.status, "body": response.body.decode("utf-8", "replace")}
