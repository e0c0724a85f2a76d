"""What TorchServe's management address tells about its models."""

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
        self.trouble = ""  # why `models` came back without an answer, the last time
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between a process and its own child

    def models(self) -> list[dict[str, Any]] | None:
        """Every version of every model, as `GET /models/{name}/all` describes it; None while no usable answer comes."""
        try:
            listed = self._get("/models?limit=1000")["models"]
            names = dict.fromkeys(model["modelName"] for model in listed)
            return [version for name in names for version in self._get(f"/models/{quote(name, safe='')}/all")]
        except (OSError, ValueError, LookupError, TypeError) as error:  # nobody listens, no token yet, or JSON of another kind
            self.trouble = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            return None

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _get(self, path: str) -> Any:
        answer = self._asked(path, "management")
        if answer.status_code == 400 and self._key_file is not None:  # expired: an hour is the default
            self._asked("/token?type=management", "API")
            answer = self._asked(path, "management")
        answer.raise_for_status()
        return answer.json()

    def _asked(self, path: str, key: str) -> requests.Response:
        return self._session.get(self._url + path, headers=self._headers(key), timeout=10)

    def _headers(self, key: str) -> dict[str, str]:
        if self._key_file is None or self._key_file.stat().st_mtime < self._since - 1:
            return {}
        token = json.loads(self._key_file.read_text("utf-8"))[key]["key"]
        return {"Authorization": f"Bearer {token}"}


def all_ready(model: dict[str, Any]) -> bool:
    """Whether a version, as `Management.models` describes it, has all its workers, and each has loaded it."""
    workers = model["workers"]
    return len(workers) >= max(1, model["minWorkers"]) and all(worker["status"] == "READY" for worker in workers)
