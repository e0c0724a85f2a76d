"""Bodies become fields, typed as TorchServe types them."""

from __future__ import annotations

import pytest

from camserve.core.errors import RequestError
from camserve.hosts.asgi.fields import read_fields
from camserve.hosts.child.__main__ import parse_json

FORM = "multipart/form-data; boundary=b"


def part(name: str, value: bytes, *, filename: str = "", content_type: str = "") -> bytes:
    """One part of a form."""
    file = f'; filename="{filename}"' if filename else ""
    kind = f"content-type: {content_type}\r\n" if content_type else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{kind}\r\n'.encode() + value + b"\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b"\xff\xd8", "image/jpeg", bytearray(b"\xff\xd8")),
        (b'{"a":1}', "application/json", bytearray(b'{"a":1}')),
        (b"abc", "text/plain", "abc"),
        (b"abc", "text/plain; charset=utf-8", "abc"),
        (b"\xff", "text/plain", bytearray(b"\xff")),
        (b"abc", "", bytearray(b"abc")),
    ],
)
def test_a_raw_body_is_the_field_body(body: bytes, content_type: str, value: object) -> None:
    """Text, and bytes: JSON is left to the model's process, for it would hold up all others here."""
    fields, types = read_fields(body, content_type)
    assert fields == {"body": value}
    assert type(fields["body"]) is type(value)
    assert types == {"body": {"content-type": content_type.partition(";")[0]}}


def test_a_forms_files_have_a_type_and_its_values_have_none() -> None:
    """As TorchServe's frontend hands them on."""
    body = part("data", b"\r\n--\xff", filename="a.jpg", content_type="image/jpeg") + part("target", b"3") + b"--b--\r\n"
    fields, types = read_fields(body, FORM)
    assert fields == {"data": bytearray(b"\r\n--\xff"), "target": bytearray(b"3")}
    assert types == {"data": {"content-type": "image/jpeg"}, "target": {"content-type": ""}}


def test_large_fields_and_json_parts_are_whole() -> None:
    """No size is spooled or refused."""
    body = part("data", b"x" * 1_500_000) + part("more", b"[1]", filename="j", content_type="application/json") + b"--b--\r\n"
    fields, _ = read_fields(body, FORM)
    assert fields == {"data": bytearray(b"x" * 1_500_000), "more": bytearray(b"[1]")}


@pytest.mark.parametrize(
    ("value", "content_type", "most", "parsed"),
    [
        (b'{"a":1}', "application/json", 99, {"a": 1}),
        (b'{"a":1}', "application/json; charset=utf-8", 99, {"a": 1}),
        (b'{"a":1}', "Application/JSON", 99, bytearray(b'{"a":1}')),
        (b'{"a":1}', "application/vnd.a+json", 99, bytearray(b'{"a":1}')),
        ('{"a":1}'.encode("utf-16"), "application/json", 99, bytearray('{"a":1}'.encode("utf-16"))),
        (b'{"a":1}', "application/json", 6, bytearray(b'{"a":1}')),
        (b"{", "application/json", 99, bytearray(b"{")),
        (b"[" * 100_000, "application/json", 10**6, bytearray(b"[" * 100_000)),
    ],
)
def test_the_models_process_parses_json(value: bytes, content_type: str, most: int, parsed: object) -> None:
    """By its exact type, whatever its parameters say, and in UTF-8; camserve's handler gets long JSON as it came, and prices it."""
    fields, types = read_fields(value, content_type)

    assert parse_json(fields, types, most) == {"body": parsed}


def test_a_prediction_ignores_options_that_come_twice() -> None:
    """As it ignores all options; pictures it does not ignore. Spaces around a name are none of it."""
    picture = part("data", b"1")
    fields, _ = read_fields(picture + part("target", b"1") + part("target ", b"2") + b"--b--", FORM, explains=False)
    assert fields == {"data": bytearray(b"1"), "target": bytearray(b"2")}
    with pytest.raises(RequestError, match="'data' twice"):
        read_fields(picture + part(" data\t", b"2") + b"--b--", FORM, explains=False)
    with pytest.raises(RequestError, match="'target' twice"):
        read_fields(b"data=1&target=1&target+=2", "application/x-www-form-urlencoded")


def test_a_form_that_is_cut_is_refused_wherever_it_is_cut() -> None:
    """What is missing may be an option, without which the answer is another: whole is what has its last boundary."""
    form = part("data", b"1\r\n2", filename="a.jpg") + part("target", b"3") + b"--b--"
    whole = read_fields(form, FORM)
    assert whole[0] == {"data": bytearray(b"1\r\n2"), "target": bytearray(b"3")}
    assert read_fields(form + b"\r\nepilogue", FORM) == whole
    for length in range(1, len(form)):
        with pytest.raises(RequestError, match="it ends before its last boundary"):
            read_fields(form[:length], FORM)


def test_an_urlencoded_form() -> None:
    """Its values are bytes."""
    assert read_fields(b"data=a%2Bb&target=3", "application/x-www-form-urlencoded")[0] == {
        "data": bytearray(b"a+b"),
        "target": bytearray(b"3"),
    }


@pytest.mark.parametrize(
    ("body", "content_type", "kind", "words"),
    [
        (part("data", b"1") + part("data", b"2") + b"--b--\r\n", FORM, "NoImage", "twice"),
        (part("target", b"1") + part("target", b"2") + b"--b--\r\n", FORM, "InvalidOption", "'target' twice"),
        (b"data=1&data=2", "application/x-www-form-urlencoded", "NoImage", "twice"),
        (b"".join(part(f"f{index}", b"1") for index in range(200)) + b"--b--\r\n", FORM, "NoImage", "more than 128 fields"),
        (b"&".join(b"f%d=1" % index for index in range(200)), "application/x-www-form-urlencoded", "NoImage", "more than 128"),
        (b"--c\r\n\r\n", FORM, "NoImage", "cannot be read"),
        (b"--b", "multipart/form-data", "NoImage", "boundary"),
    ],
)
def test_what_is_no_form_or_gives_a_field_twice_is_refused(body: bytes, content_type: str, kind: str, words: str) -> None:
    """Nothing is dropped without a word."""
    with pytest.raises(RequestError, match=words) as caught:
        read_fields(body, content_type)
    assert (caught.value.status, caught.value.kind) == (400, kind)
