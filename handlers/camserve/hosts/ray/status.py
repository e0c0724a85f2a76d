"""The application as it runs: what Serve's controller says of it, and how other archives take the place of those that it has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from camserve.hosts.ray import FRONT
from camserve.hosts.ray.application import build, read_all
from camserve.hosts.ray.model import APPLICATION

FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
REASON = re.compile(r"(?:LoadError|ArchiveError|ConfigError)(?:\x1b\[\d*m)?: (.+)")


def is_running() -> bool:
    """Return whether every deployment has its replicas, in the version that was deployed last."""
    application = serve.status().applications.get(APPLICATION)
    return application is not None and application.status == "RUNNING"


def find_failure() -> str | None:
    """Return why the application cannot be deployed, in one line; None: it can, so far."""
    application = serve.status().applications.get(APPLICATION)
    if application is None or application.status not in FAILED:
        return None
    messages = [application.message, *(each.message for each in application.deployments.values())]
    found = next((match[1] for message in messages for match in [REASON.search(message or "")] if match), None)
    return found.strip() if found else " ".join((application.message or str(application.status)).split())[:500]


def close_front() -> int:
    """Let the fronts refuse what comes from now on; return how many requests they still have."""
    handle = serve.get_deployment_handle(FRONT, APPLICATION)
    try:
        return sum(int(each) for each in handle.broadcast("close").results(timeout_s=5))
    except (TimeoutError, RayError, RayServeException):
        return -1


def update(archives: Sequence[str], models: Mapping[str, Any] | None) -> None:
    """Put archives in the place of those of the same name, one replica after the other, and leave the rest as it is.

    Args:
        archives: PATH, or ALIAS=PATH; where the cluster serves nothing yet, these are served.
        models: options of deployments by the model's name, which go before those so far; None: as they are.

    Raises:
        ConfigError, ArchiveError: as `build`.
    """
    before = _find_arguments()
    old = read_all(before) if before else []
    new = read_all({**before, "archives": archives})
    names = {each.hosted.name for each in new}
    kept = [f"{each.hosted.name}={each.path}" for each in old if each.hosted.name not in names]
    added = [f"{each.hosted.name}={each.path}" for each in new]
    arguments = {**before, "archives": [*kept, *added], "models": {**before.get("models", {}), **(models or {})}}
    target = serve.RunTarget(build(arguments), APPLICATION, "/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _find_arguments() -> dict[str, Any]:
    if APPLICATION not in serve.status().applications:
        return {}
    handle = serve.get_deployment_handle(FRONT, APPLICATION)
    found: list[dict[str, Any]] = handle.broadcast("arguments").results(timeout_s=30)
    return dict(found[0]) if found else {}
