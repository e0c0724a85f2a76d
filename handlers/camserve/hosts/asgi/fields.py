"""A request's body becomes the fields that a handler gets, typed as TorchServe types them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import parse_qsl

from python_multipart.multipart import MultipartParser, parse_options_header

from camserve.core.errors import RequestError
from camserve.protocol.body import HOW_TO_SEND, name_repeated

Part = tuple[str, str, bytes]
"""A field's name, content type and value."""

MAX_FIELDS = 128
"""Fields of a form, as many as TorchServe takes: millions would hold up everybody for minutes."""


def read_fields(body: bytes, content_type: str, explains: bool = True) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
    """Return the fields of a body, and the content type of each without its parameters, as handlers find it among the headers.

    A raw body is the field `body`. Text is decoded where it can be; everything else stays bytes.

    Args:
        explains: an explanation is asked for. A prediction ignores options, so of one that comes twice the last is handed on.

    Raises:
        RequestError: 400, a form that is none or not whole, or that gives one field twice or too many fields.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _collect(_read_form(body, options), explains)
    if kind == b"application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise _too_many() from None
        return _collect([(name, "", value.encode()) for name, value in pairs], explains)
    return _collect([("body", content_type, body)], explains)


def _typed(value: bytes, content_type: str) -> object:
    """Decode text as TorchServe's worker does, and leave bytes where that fails; JSON is parsed by the model's process."""
    with suppress(UnicodeDecodeError):
        if content_type.startswith("text"):
            return value.decode()
    return bytearray(value)


def _too_many() -> RequestError:
    return RequestError(400, "NoImage", f"the form has more than {MAX_FIELDS} fields; {HOW_TO_SEND}")


def _collect(parts: Sequence[Part], explains: bool) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
    fields: dict[str, object] = {}
    types: dict[str, dict[str, str]] = {}
    for given, content_type, value in parts:
        name, kind = given.strip(), content_type.partition(";")[0].strip()  # TorchServe's frontend hands on no more of them
        if name in fields and (explains or name in ("data", "body")):
            raise name_repeated(name)
        fields[name] = _typed(value, kind)
        types[name] = {"content-type": kind}
    return fields, types


def _read_form(body: bytes, options: Mapping[bytes, bytes]) -> list[Part]:
    if not options.get(b"boundary"):
        raise RequestError(400, "NoImage", "the form's content type names no boundary; let the client's library write it")
    parts: list[Part] = []
    headers: dict[bytes, bytes] = {}
    name, value, data = bytearray(), bytearray(), bytearray()
    ended = False

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

    def finish() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": begin,
            "on_header_field": lambda raw, start, stop: name.extend(raw[start:stop]),
            "on_header_value": lambda raw, start, stop: value.extend(raw[start:stop]),
            "on_header_end": end_header,
            "on_part_data": lambda raw, start, stop: data.extend(raw[start:stop]),
            "on_part_end": end,
            "on_end": finish,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except ValueError as error:  # the library's errors are all of this kind
        raise RequestError(400, "NoImage", f"the form cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not ended:  # what is missing may be the target
        raise RequestError(400, "NoImage", "the form cannot be read: it ends before its last boundary; send all of it")
    return parts
