"""Checks InferenceServices against KServe's own models, in KServe's environment: `schema.py < JSON`, a list of them; what is wrong
with each, as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve.models
import kubernetes.client.models

PLAIN: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def complaints(value: Any, kind: str, place: str) -> Iterator[str]:
    """What of `value` is not a `kind`, as the models name their types."""
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            yield f"{place}: {value!r} is no {kind}"
    elif many := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        for index, each in enumerate(value):
            yield from complaints(each, many[1], f"{place}[{index}]")
    elif mapping := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        for key, each in value.items():
            yield from complaints(each, mapping[1], f"{place}.{key}")
    elif model := getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None):
        yield from members(value, model, place)
    elif not kind.endswith("Quantity"):  # numbers and texts
        yield f"{place}: no model {kind}"


def members(value: Any, model: Any, place: str) -> Iterator[str]:
    """What of a mapping the model does not have, and what it has otherwise; KServe embeds Kubernetes' own models."""
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no {model.__name__}"
        return
    names = {key: name for name, key in model.attribute_map.items()}
    for key, each in value.items():
        if key in names:
            yield from complaints(each, model.openapi_types[names[key]], f"{place}.{key}")
        else:
            yield f"{place}.{key} is unknown"


if __name__ == "__main__":
    services = json.load(sys.stdin)
    json.dump([list(complaints(each, "V1beta1InferenceService", "InferenceService")) for each in services], sys.stdout)
