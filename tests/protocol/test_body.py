"""Images as users send them: bytes, base64, data: URLs, JSON."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.messages import Encoded
from camserve.pictures.decode import open_picture
from camserve.protocol.body import SparingJson, decode_base64, price_numbers, read_image, read_json, starts_json

CONFIG = Config()
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\xfb\xff\xbe" + bytes(range(256)) + b"\xff\xd9"
TEXT = base64.b64encode(JPEG).decode()
URL_SAFE = base64.urlsafe_b64encode(JPEG).decode()
TENSOR = [[[1, 2.5]], [[3, 4]], [[5, 6]]]


def refused(value: object, **kwargs: Any) -> RequestError:
    """The error that `value` is refused with."""
    with pytest.raises(RequestError) as caught:
        read_image(value, CONFIG, **kwargs)
    assert caught.value.status == 400
    return caught.value


def image_or_kind(value: object, stock: bool) -> object:
    """The image, or the kind of the error."""
    try:
        return read_image(value, CONFIG, stock=stock)
    except RequestError as error:
        return error.kind


@pytest.mark.parametrize(
    "value",
    [
        *(JPEG, bytearray(JPEG), TEXT, TEXT.encode(), URL_SAFE, TEXT.rstrip("="), URL_SAFE.rstrip("=")),
        *(TEXT[:40] + "\r\n" + TEXT[40:] + "\n", "  \t" + TEXT, f"data:image/jpeg;base64,{TEXT}"),
        *(f"DATA:;BASE64,{URL_SAFE}", f"data:image/jpeg;name=a.jpg;base64,{TEXT}".encode(), f"data:;base64,\n{TEXT}\n"),
    ],
)
def test_every_form_of_one_picture(value: bytes | bytearray | str) -> None:
    """Bytes, base64 in either alphabet, with or without padding and whitespace, and `data:` URLs hold the same bytes."""
    image = read_image(value, CONFIG)
    assert isinstance(image, Encoded)
    assert image.data == JPEG
    assert type(image.data) is bytes


@pytest.mark.parametrize("value", [TENSOR, json.dumps(TENSOR), json.dumps(TENSOR).encode(), "\ufeff \n" + json.dumps(TENSOR)])
def test_tensor(value: object) -> None:
    """A list, parsed or as JSON text, is a tensor."""
    image = read_image(value, CONFIG)
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.float32
    assert image.tolist() == TENSOR


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    """Bytes outside base64, even one, and a cut-off picture of letters only, are left to the decoder of pictures."""
    for raw in (b"not, a picture", TEXT.encode() + b"\xff", b"GIF89a", b"\x00" * 10):
        assert read_image(raw, CONFIG) == Encoded(raw)


@pytest.mark.parametrize(
    ("value", "came"),
    [
        *(("tabby!", "tabby!"), ("A", "A"), ("AB=", "AB="), ("AB==CD", "AB==CD"), ("=AAA", "=AAA"), (TEXT + "é", "/9j")),
        *((b"tabby", "tabby"), ("data:image/jpeg,abc", "data:image/jpeg,abc"), ("data:image/jpeg;base64", "data:")),
        *(("data:image/png;base64,\u20ac", "data:"), ("%2F9j%2F", "%2F9j%2F"), ("\ud800", "?"), ("<script>\r\n", "<script>")),
    ],
)
def test_invalid_base64(value: object, came: str) -> None:
    """What is not base64 is a 400 that shows how it starts, on one line."""
    error = refused(value)
    assert error.kind == "InvalidBase64"
    assert error.message.startswith(f'data: expected base64 or a data: URL of base64, got "{came}')
    assert "\n" not in error.message
    assert len(error.message) < 150


def test_text_that_happens_to_be_base64_is_told_so() -> None:
    """Its letters and spaces decode to something; the refusal's bytes are those, so it says where they come from."""
    text = ("all work and no play makes Jack a dull boy\n" * 12)[:500]
    for value in (text, text.encode(), f"data:;base64,{text}"):
        image = read_image(value, CONFIG)
        assert isinstance(image, Encoded)
        with pytest.raises(RequestError, match=r"which start with [0-9a-f ]{35}, after base64 decoding of 500 characters$"):
            open_picture(image.data, CONFIG, image.origin)
    with pytest.raises(RequestError, match=r"which start with 85 e9$"):
        open_picture(b"\x85\xe9", CONFIG)


def test_text_bodies_are_decoded_as_leniently_as_the_stock_handler() -> None:
    """Quotes and other marks around base64 are dropped where the stock handler drops them, only if a picture is the outcome."""
    for text in (f'"{TEXT}"', f"<{TEXT}>", f"{TEXT[:40]}!{TEXT[40:]}"):
        assert base64.b64decode(text) == JPEG
        assert read_image(text, CONFIG, stock=True) == Encoded(JPEG)
        assert refused(text).kind == "InvalidBase64"
    for text in ("hello, world!", "<aGVsbG8gd29ybGQh>"):
        assert refused(text, stock=True).kind == "InvalidBase64"


@pytest.mark.parametrize("value", [None, 5, True, 1.5, {}, {"b64": TEXT}, "", b"", bytearray(), '{"data": "x"}', b"{}", "   "])
def test_no_image(value: object) -> None:
    """Anything that is neither bytes, text nor list holds no image, and the message says how to send one."""
    error = refused(value, place="b64")
    assert error.kind == "NoImage"
    assert error.message.startswith("b64: ")
    assert "send the picture's bytes (curl -T cat.jpg)" in error.message


def test_a_name_instead_of_a_file() -> None:
    """`curl -d data=@cat.jpg` sends the name; the message says which option sends the file."""
    for value in ("@cat.jpg", b"@cat.jpg"):
        error = refused(value)
        assert error.kind == "NoImage"
        assert '"@cat.jpg" is a file\'s name' in error.message
        assert "-F data=@cat.jpg" in error.message


@pytest.mark.parametrize(
    ("raw", "gist"),
    [
        (b'{"data": ', "Expecting value at line 1, column 10 (character 9)"),
        (b'{"a": 1,\n"b" 2}', "Expecting ':' delimiter at line 2, column 5 (character 13)"),
        (b"{'data': 1}", "line 1, column 2"),
        (b'[1] "x"', "Extra data"),
        (b'["\xff"]', "byte 2 is not valid utf-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 90_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "too many digits"),
        (b'["\\x"]', "Invalid \\escape"),
    ],
)
def test_invalid_json(raw: bytes, gist: str) -> None:
    """Malformed JSON is a 400 that says where; depth and endless numbers are refused, not suffered."""
    with pytest.raises(RequestError) as caught:
        read_json(raw)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidJSON")
    assert gist in caught.value.message


def test_json_in_other_encodings() -> None:
    """A byte order mark, and UTF-16, do no harm."""
    assert read_json('{"a": "é"}'.encode("utf-8-sig")) == read_json('{"a": "é"}'.encode("utf-16")) == {"a": "é"}


def test_starts_json() -> None:
    """Only an opening brace or bracket, after whitespace and a byte order mark, starts JSON."""
    assert all(map(starts_json, (b"{", b" \r\n\t[", b"\xef\xbb\xbf{")))
    assert not any(map(starts_json, (b"", b'"x"', b"1", JPEG, b"(", b"\x00{")))


@given(st.binary())
def test_base64_round_trip(raw: bytes) -> None:
    """Every byte string survives both alphabets, padded or not."""
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        assert decode_base64(encoded) == decode_base64(encoded.rstrip(b"=")) == raw


@given(st.binary() | st.text() | st.text("AZaz09+/-_= \n", max_size=30) | st.from_regex("data:[a-z/;,A=]*", fullmatch=True))
def test_any_value(value: bytes | str) -> None:
    """Any bytes and any text are an image or a 400 of a kind that the contract lists."""
    for stock in (False, True):
        outcome = image_or_kind(value, stock)
        assert not isinstance(outcome, str) or outcome in {"NoImage", "InvalidBase64", "InvalidJSON", "InvalidTensor"}


@pytest.mark.parametrize("raw", [b"A" * 3_000_000 + b"!", b" " * 3_000_000 + b"!", b"A" * 3_000_000 + b" " * 300_000 + b"=!"])
def test_hostile_text_costs_little(raw: bytes) -> None:
    """Megabytes that are almost base64 are told from it in one pass; were they not, this would hang."""
    assert read_image(raw, CONFIG) == Encoded(raw)
    assert refused(raw.decode()).kind == "InvalidBase64"


@pytest.mark.parametrize("part", ["[],", "{},", '"k":0,'])
def test_json_of_too_many_parts_is_refused_unparsed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MiB of empty lists take a parser seconds and 700 MB; eight of them ended a worker."""
    brackets = "{}" if ":" in part else "[]"
    fits, floods = (brackets[0] + part * count + part[:-1] + brackets[1] for count in (150_000, 200_000))
    assert read_json(fits.encode())

    monkeypatch.setattr("camserve.protocol.body.json.loads", lambda _: pytest.fail("parsed"))
    with pytest.raises(RequestError) as caught:
        read_json(floods.encode())

    assert (caught.value.status, caught.value.kind) == (400, "InvalidJSON")
    assert "at most 200,000 lists, objects and keys" in caught.value.message
    assert SparingJson().loads(floods) == floods.encode()


def test_long_json_is_left_to_the_allowance_of_work() -> None:
    """The server's codec would parse eight bodies of 32 MiB before any handler sees one."""
    long = "[" + "0," * 600_000 + "0]"

    assert SparingJson().loads(long) == long.encode()


@pytest.mark.parametrize(
    ("value", "work"),
    [
        (b"[" + b"0," * 10_000_000 + b"0]", 5_600),  # a second and a half
        ("[" + "0.12345678901234567," * 1_000_000 + "0]", 1_100),  # a third of a second
        (base64.b64encode(bytes(20_000_000)).decode(), 0),
        (b"\xff\xd8\xff" + b"," * 10_000_000, 0),  # a picture is priced by its header
        ([0.0] * 1_000_000, 0),  # parsed already
    ],
)
def test_numbers_in_json_are_priced_by_their_count_and_length(value: object, work: float) -> None:
    """Two to five times what reading them takes; the longest spelling costs no more than its bytes."""
    assert price_numbers({"data": value}) == pytest.approx(work, rel=0.01)


def test_the_servers_codec_parses_what_is_no_flood() -> None:
    """As ever, and the rest of the module is there."""
    sparing = SparingJson()

    assert sparing.loads('{"data": [1, "\\ud83d"]}') == {"data": [1, "\ud83d"]}
    assert sparing.dumps({"a": 1}) == '{"a": 1}'
    with pytest.raises(ValueError, match="Expecting"):
        sparing.loads("nothing")
