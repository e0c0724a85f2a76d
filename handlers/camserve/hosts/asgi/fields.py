"""A request's body becomes the fields that a handler gets, typed as TorchServe types them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import parse_qsl

from python_multipart.multipart import MultipartParser, parse_options_header

from camserve.core.errors import RequestError
from camserve.protocol.body import HOW_TO_SEND, name_repeated

MAX_FIELDS = 128
"""Fields of a form, as many as TorchServe takes: millions would hold up everybody for minutes."""


def read_fields(body: bytes, content_type: str) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
    """Return the fields of a body, and the content type of each, as handlers find it among the headers.

    A raw body is the field `body`. Text is decoded where it can be; everything else stays bytes.

    Raises:
        RequestError: 400, a form that is none, or that gives one field twice or too many fields.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _read_form(body, options)
    if kind == b"application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise _too_many() from None
        return _collect((name, "", value.encode()) for name, value in pairs)
    return {"body": _typed(body, content_type)}, {"body": {"content-type": content_type}}


def _typed(value: bytes, content_type: str) -> object:
    """Decode text as TorchServe's worker does, and leave bytes where that fails; JSON is parsed by the model's process."""
    with suppress(UnicodeDecodeError):
        if content_type.startswith("text"):
            return value.decode()
    return bytearray(value)


def _too_many() -> RequestError:
    return RequestError(400, "NoImage", f"the form has more than {MAX_FIELDS} fields; {HOW_TO_SEND}")


def _collect(parts: object) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
    fields: dict[str, object] = {}
    types: dict[str, dict[str, str]] = {}
    for name, content_type, value in parts:  # type: ignore[attr-defined]
        if name in fields:
            raise name_repeated(name)
        fields[name] = _typed(value, content_type)
        types[name] = {"content-type": content_type}
    return fields, types


def _read_form(body: bytes, options: Mapping[bytes, bytes]) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
    if not options.get(b"boundary"):
        raise RequestError(400, "NoImage", "the form's content type names no boundary; let the client's library write it")
    parts: list[tuple[str, str, bytes]] = []
    headers: dict[bytes, bytes] = {}
    name, value, data = bytearray(), bytearray(), bytearray()

    def begin() -> None:
        if len(parts) >= MAX_FIELDS:
            raise _too_many()
        headers.clear()
        data.clear()

    def end_header() -> None:
        headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def end() -> None:
        _, disposition = parse_options_header(headers.get(b"content-disposition", b""))
        # TorchServe hands on the type of files only
        content_type = headers.get(b"content-type", b"application/octet-stream") if b"filename" in disposition else b""
        parts.append((disposition.get(b"name", b"").decode("utf-8", "replace"), content_type.decode("latin-1"), bytes(data)))

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": begin,
            "on_header_field": lambda raw, start, stop: name.extend(raw[start:stop]),
            "on_header_value": lambda raw, start, stop: value.extend(raw[start:stop]),
            "on_header_end": end_header,
            "on_part_data": lambda raw, start, stop: data.extend(raw[start:stop]),
            "on_part_end": end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except ValueError as error:  # the library's errors are all of this kind
        raise RequestError(400, "NoImage", f"the form cannot be read: {' '.join(str(error).split())[:120]}") from None
    return _collect(parts)
