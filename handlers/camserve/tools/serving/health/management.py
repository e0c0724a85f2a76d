"""Asks TorchServe's management address about its models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests


class Management:
    """Asks the management address at `url`; with the key from `key_file` where the server wants tokens."""

    def __init__(self, url: str, key_file: Path | None = None) -> None:
        self._url = url
        self._key_file = key_file
        self._since = time.time()
        self.last_error = ""  # why `fetch_models` got no usable answer, the last time
        self._session = requests.Session()
        self._session.trust_env = False  # there is no proxy between a process and its own child

    def fetch_models(self) -> list[dict[str, Any]] | None:
        """Fetches every version of every model, as `GET /models/{name}/all` describes it; None while no usable answer comes."""
        try:
            models = self._get("/models?limit=1000")["models"]
            names = dict.fromkeys(model["modelName"] for model in models)
            return [version for name in names for version in self._get(f"/models/{quote(name, safe='')}/all")]
        except (OSError, ValueError, LookupError, TypeError) as error:  # nobody listens, no token yet, or JSON of another kind
            self.last_error = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            return None

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _get(self, path: str) -> Any:
        answer = self._ask(path, "management")
        if answer.status_code == 400 and self._key_file is not None:  # expired: an hour is the default
            self._ask("/token?type=management", "API")
            answer = self._ask(path, "management")
        answer.raise_for_status()
        return answer.json()

    def _ask(self, path: str, key: str) -> requests.Response:
        return self._session.get(self._url + path, headers=self._headers(key), timeout=10)

    def _headers(self, key: str) -> dict[str, str]:
        if self._key_file is None or self._key_file.stat().st_mtime < self._since - 1:
            return {}
        token = json.loads(self._key_file.read_text("utf-8"))[key]["key"]
        return {"Authorization": f"Bearer {token}"}


def is_ready(model: dict[str, Any]) -> bool:
    """Returns whether a version, as `fetch_models` describes it, has all its workers, and each has loaded it."""
    workers = model["workers"]
    return len(workers) >= max(1, model["minWorkers"]) and all(worker["status"] == "READY" for worker in workers)
