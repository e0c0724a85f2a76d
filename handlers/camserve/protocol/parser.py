"""A row with its headers becomes a `Call`, a `Call` a `Request`: which protocol, which images, which options.

The host tells neither the URL nor the method, so the protocols are told apart by their bodies: a JSON object with
`instances` is V1, one with `inputs` is V2 (unless it has `data`), everything else is plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, Call, Encoded, Image, Item, Page, Request
from camserve.core.served import Served
from camserve.core.text import join_names, show
from camserve.pictures.files.formats import is_picture
from camserve.protocol.accept import check_host, wants_page
from camserve.protocol.body import HOW_TO_SEND, as_bytes, name_repeated, read_image, read_json, starts_json
from camserve.protocol.kserve.request import parse_v1, parse_v2
from camserve.protocol.options import OptionReader, Spelling
from camserve.protocol.tensors import bad_tensor, is_npy

Retrieve = Callable[[Sequence[Mapping[str, Any]]], Any]

REPEATED = "camserve repeated"
"""Where a request's headers hold the names of repeated fields, as a tuple, which no client can send."""

NPY = CONTENT_TYPES["npy"]
JSON_LENGTH = "inference-header-content-length"
_FORM_HELP = (
    "the body came as application/x-www-form-urlencoded, as curl's -d and --data-binary send it; "
    "send a picture with -T cat.jpg or -F data=@cat.jpg, and JSON with -H 'content-type: application/json'"
)


def read_call(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Call:
    """Read a row and its headers; TorchServe keeps each parameter's content type among the headers, as a dict.

    Its own header is `explain`, in this case exactly: a client's `Explain` stands beside it. gRPC has no headers and no call to
    explain, so there the input `explain` asks for it: `true`, or `false`; anything else is refused as an option.
    """
    plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    if not plain and isinstance(row.get("explain"), (bytes, bytearray)):
        word = bytes(row["explain"]).strip().lower()
        rest = {name: value for name, value in row.items() if name != "explain"}
        return Call(word != b"false", {}, rest if word in (b"true", b"false") else row)
    repeated = headers.get(REPEATED)
    return Call(headers.get("explain") == "True", plain, row, repeated if isinstance(repeated, tuple) else ())


def keep_repeats(retrieve: Retrieve) -> Retrieve:
    """Have what reads a batch's rows and headers add which fields each form gives more than once, as `REPEATED` of its headers.

    Args:
        retrieve: TorchServe's `Service.retrieve_data_for_inference`, which hands over the last of them, though the frontend
            passes all on; or what this function made of it, which is returned.
    """
    if getattr(retrieve, "keeps_repeats", False):
        return retrieve

    @wraps(retrieve)
    def keeping(batch: Sequence[Mapping[str, Any]]) -> Any:
        found = retrieve(batch)
        for request, processor in zip(batch, found[0], strict=True):
            counts = Counter(parameter["name"] for parameter in request["parameters"])
            repeated = tuple(name for name, count in counts.items() if count > 1)
            if repeated:
                processor.get_request_properties()[REPEATED] = repeated
        return found

    keeping.keeps_repeats = True  # type: ignore[attr-defined]
    return keeping


def comes_from_management(headers: Mapping[str, Any]) -> bool:
    """Return True if a request without a body came to the management address.

    Most inference routes say `explain` of each request; `/invocations` and its like do not, and have no body where a form is
    empty.
    """
    form = any(name.lower() == "content-type" and "form" in str(value).lower() for name, value in headers.items())
    return "explain" not in headers and not form


class Parser:
    """Reads requests to one archive.

    Args:
        served: what the archive offers.
    """

    def __init__(self, served: Served) -> None:
        self._config = served.config
        self._reader = OptionReader(served)

    def parse(self, call: Call) -> Request | Page:
        """Reads and checks one request. Predictions on plain routes read the image only, as the stock handler does.

        Raises:
            RequestError: 400, 403, 406 and 413, whatever the client sent.
        """
        headers = {name: value for name, value in call.headers.items() if isinstance(value, str)}
        check_host(headers, self._config.allowed_hosts)
        for name in call.repeated:
            if call.explain or name in ("data", "body"):  # a prediction ignores options, as the stock handler does
                raise name_repeated(name)
        call = Call(call.explain, headers, call.fields)
        if len(call.fields) > 1 or (call.fields and "body" not in call.fields):
            return self._parse_form(call)
        body = call.fields.get("body", b"")
        if _is_empty(body):
            if call.explain and wants_page(headers.get("accept")):
                return Page()
            raise RequestError(400, "NoImage", f"the body is empty; {HOW_TO_SEND}")
        return self._parse_body(body, call)

    def _parse_body(self, body: object, call: Call) -> Request:
        tail = b""
        if isinstance(body, (bytes, bytearray, str)):
            raw = as_bytes(body)
            if starts_json(raw) and JSON_LENGTH in call.headers:
                raw, tail = _split(raw, call.headers[JSON_LENGTH])
            if _content_type(call) == NPY and not is_npy(raw):
                raise bad_tensor(f"{len(raw)} bytes that are no .npy file, with content-type: {NPY}", self._config)
            is_undecoded = not isinstance(body, str) and _says_json(call)
            if starts_json(raw) or (is_undecoded and not is_picture(raw)):
                body = read_json(raw)
        if not isinstance(body, dict):
            return self._plain(call, read_image(body, self._config, "the body", stock=True), {}, "json")
        if "data" not in body and "instances" in body:
            return parse_v1(body, call, self._config, self._reader)
        if "data" not in body and "inputs" in body:
            return parse_v2(body, tail, call, self._config, self._reader)
        options = {name: value for name, value in body.items() if name != "data"}
        if "data" not in body:
            raise RequestError(400, "NoImage", f"the JSON object has no data, only {_names(options)}; {HOW_TO_SEND}")
        return self._plain(call, read_image(body["data"], self._config), options, "json")

    def _parse_form(self, call: Call) -> Request:
        options = {name: value for name, value in call.fields.items() if name not in {"data", "body"}}
        place = "data" if call.fields.get("data") or "body" not in call.fields else "body"  # the stock handler's choice
        value = call.fields.get(place)
        urlencoded = _content_type(call) == "application/x-www-form-urlencoded"
        if value is None:
            way = f"; {_FORM_HELP}" if urlencoded else f", only {_names(options)}; {HOW_TO_SEND}"
            raise RequestError(400, "NoImage", f"the form has no field data{way}")
        if urlencoded and isinstance(value, (bytes, bytearray)):
            value = bytes(value).replace(b" ", b"+")  # such forms read the + of base64 as a space
        return self._plain(call, read_image(value, self._config, place, stock=True), options, "text")

    def _plain(self, call: Call, image: Image, options: dict[str, object], spelling: Spelling) -> Request:
        if not call.explain:
            return Request("plain", False, (Item(image, self._reader.defaults),))
        given = self._reader.merge(self._reader.from_headers(call.headers), self._reader.from_values(options, spelling))
        asked = self._reader.read(given, call.headers.get("accept"), not isinstance(image, Encoded))
        return Request("plain", True, (Item(image, asked),))


def _content_type(call: Call) -> str:
    return call.headers.get("content-type", "").split(";")[0].strip().lower()


def _says_json(call: Call) -> bool:
    name = _content_type(call)
    return name == "application/json" or (name.startswith("application/") and name.endswith("+json"))


def _is_empty(body: object) -> bool:
    return isinstance(body, (bytes, bytearray, str)) and not body[:1].strip() and not body.strip()


def _names(options: dict[str, object]) -> str:
    return join_names(options, 5, show) or "{}"


def _split(raw: bytes, length: str) -> tuple[bytes, bytes]:
    """Splits a body of KServe's binary extension into its JSON and what follows."""
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= len(raw)):
        message = f"{JSON_LENGTH}: expected the JSON part's length, a whole number up to {len(raw)}, got {show(length)}"
        raise RequestError(400, "InvalidJSON", message)
    return raw[: int(length)], raw[int(length) :]
