"""`Accept`, by RFC 9110."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES
from camserve.protocol.accept import negotiate, wants_page


def negotiated(accept: str) -> str:
    """The media, or the kind of the error."""
    try:
        return negotiate(accept)
    except RequestError as error:
        return error.kind


CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "json"),
        ("", "json"),
        (" , ", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("application/*", "json"),
        ("application/json; charset=utf-8", "json"),
        ("APPLICATION/JSON", "json"),
        ("image/png", "png"),
        ("image/jpeg", "jpeg"),
        ("image/jpg", "jpeg"),
        ("image/webp", "webp"),
        ("application/x-npy", "npy"),
        ("image/*", "png"),
        ("image/*, image/png;q=0", "jpeg"),
        ("image/png, application/json", "json"),
        ("application/x-npy, image/webp", "webp"),
        ("image/png;q=0.5, image/webp;q=0.6", "webp"),
        ("image/png;q=0.5,*/*;q=0.1", "png"),
        ("*/*;q=0.5, application/json;q=0", "png"),
        ("*/*, application/*;q=0.2", "png"),
        ("*/*;q=0.9, application/json;q=0.1, image/*;q=0.2", "npy"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "jpeg"),
        ('image/png;profile="a,b;q=0";Q=1.000, application/json;q=0.999', "png"),
        ("application/json;version=2;q=0, application/json;q=0.3, image/png;q=0.2", "json"),
        ("application/json;q=0.3, application/json;version=2;q=0, image/png;q=0.2", "json"),
        (CHROME, "webp"),
        (FIREFOX, "json"),
    ],
)
def test_accept_chooses(accept: str | None, media: str) -> None:
    """Lists, weights, wildcards and specificity count as the standard says; ties go to JSON."""
    assert negotiate(accept) == media


@pytest.mark.parametrize(
    "accept",
    [
        *("text/html", "image/gif", "*/*;q=0", "application/json;q=0", "image/png;q=0.000"),
        *("json", "*/json", "*/json, */*", "image/", "/png", "image/png;q=2", "image/png;q=-1", "image/png;q=x", "image/png;q="),
        *("image/png;q=0.5.5", "image/png q=1", "image/pñg", 'image/png;a="', "a b/c", "image/png;;q", "\x00", "a/b" * 2000),
    ],
)
def test_not_acceptable(accept: str) -> None:
    """Nothing acceptable, and what cannot be parsed, is a 406 that names every type on offer."""
    with pytest.raises(RequestError) as caught:
        negotiate(accept)
    assert (caught.value.status, caught.value.kind) == (406, "NotAcceptable")
    assert all(name in caught.value.message for name in CONTENT_TYPES.values())
    assert len(caught.value.message) < 250


def test_a_tensor_is_offered_no_picture() -> None:
    """For a tensor the best of JSON and arrays is chosen; where only pictures will do it is 400, else 406 without them."""
    assert negotiate("image/png, application/json;q=0.1", tensor=True) == "json"
    assert negotiate("image/*, application/x-npy;q=0.1", tensor=True) == "npy"
    with pytest.raises(RequestError, match="the input is a tensor") as caught:
        negotiate("image/webp", tensor=True)
    assert (caught.value.status, caught.value.kind) == (400, "NoPicture")
    with pytest.raises(RequestError, match="are application/json or application/x-npy") as caught:
        negotiate("text/html", tensor=True)
    assert caught.value.status == 406


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        *((CHROME, True), (FIREFOX, True), ("text/html", True), ("text/*", True), ("text/html;q=0.1", True)),
        *((None, False), ("", False), ("*/*", False), ("text/html, application/json", False), ("text/html;q=0", False)),
        *(("text/html;q=0.5, image/png", False), ("text/html;q=2", False), ("application/json", False)),
    ],
)
def test_wants_page(accept: str | None, page: bool) -> None:
    """Only who prefers HTML to JSON, and wants nothing else more, gets the page."""
    assert wants_page(accept) is page


@given(st.text() | st.text('abc/*;,=q.01" \t\\', max_size=60))
def test_any_text(accept: str) -> None:
    """Whatever the header holds, it is a media or a `RequestError`."""
    assert negotiated(accept) in {*CONTENT_TYPES, "NotAcceptable"}
    assert wants_page(accept) in {True, False}


@pytest.mark.parametrize("part", ['"\\', "; ", ";\t", ",", ";q=", "a/b;", '"', "\\", "*/*,"])
def test_hostile_accept_costs_little(part: str) -> None:
    """A header made to be slow to read (unclosed quotes, endless whitespace) is refused or read; were it slow, this would hang."""
    for accept in (part * (4096 // len(part)), part * 100_000):
        assert negotiated("a/b" + accept) == "NotAcceptable"
