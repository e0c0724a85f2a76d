"""The shapes that schemas are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
SIZE: Schema = {"type": "integer", "minimum": 1}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
ID: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}


def ref(name: str) -> Schema:
    """Refers to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def make_object(required: Iterable[str] | None = None, /, **properties: Schema) -> Schema:
    """Makes an object of just these properties, all required unless `required` names fewer."""
    names = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def make_list(items: Schema, low: int = 0, high: int | None = None) -> Schema:
    """Makes a list of `low` to `high` items; None: of any number."""
    limits = {"minItems": low} | ({} if high is None else {"maxItems": high})
    return {"type": "array", "items": items, **limits}


def make_nullable(schema: Schema) -> Schema:
    """Lets it be null too."""
    return {"anyOf": [schema, {"type": "null"}]}


def make_choice(names: Iterable[str]) -> Schema:
    """Makes one of these strings."""
    return {"type": "string", "enum": list(names)}
