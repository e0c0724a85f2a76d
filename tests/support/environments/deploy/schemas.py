"""Checks what people deploy against its schemas, in an environment of its own: `schemas.py < JSON`, complaints as JSON.

Input: a list of `{"kubernetes": [manifest, ...], "operator": [manifest, ...], "compose": [text, ...]}`. Output: for each a list of
texts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor
from compose_spec import PyCompose
from pydantic import ValidationError

OPERATOR = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule, "ServiceMonitor": ServiceMonitor}
RELEASES = ("1.37", "1.31")


def kubernetes(manifest: Any) -> Iterator[str]:
    """By Kubernetes' own schemas, strictly."""
    for release in RELEASES:
        try:
            kubernetes_validate.validate(manifest, release, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            yield f"{release} {manifest['kind']}: {getattr(error, 'message', error)}"


def operator(manifest: Any) -> Iterator[str]:
    """By the operator's models, which pass over what they do not know: so that what they read must be all there is."""
    try:
        read = OPERATOR[manifest["kind"]].model_validate(manifest)
    except ValidationError as error:
        yield f"{manifest['kind']}: {error}"
        return
    yield from unread(manifest, json.loads(read.model_dump_json(by_alias=True, exclude_unset=True)), manifest["kind"])


def unread(given: Any, read: Any, place: str) -> Iterator[str]:
    """The places of `given` that are not in `read`."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                yield f"{place}.{key} is unknown"
            else:
                yield from unread(value, read[key], f"{place}.{key}")
    elif isinstance(given, list) and isinstance(read, list):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from unread(one, other, f"{place}[{index}]")


def compose(text: str) -> Iterator[str]:
    """By the Compose specification."""
    try:
        PyCompose.from_yaml(text)
    except Exception as error:  # noqa: BLE001 whatever the parser says
        yield f"compose: {error}"


def main() -> None:
    """Everything of standard input."""
    checks = {"kubernetes": kubernetes, "operator": operator, "compose": compose}
    json.dump(
        [
            [text for name, check in checks.items() for each in given.get(name, ()) for text in check(each)]
            for given in json.load(sys.stdin)
        ],
        sys.stdout,
    )


if __name__ == "__main__":
    main()
