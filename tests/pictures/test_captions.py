"""Captions: what stands above pictures that stand side by side, whatever their labels are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from camserve.pictures.captions import GAP, caption, join_side_by_side, load_font, shorten


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random picture."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def strip_of(text: str, width: int = 200) -> np.ndarray:
    """The strip over one black picture that is 100 pixels high: `[strip, width, 3]`."""
    return join_side_by_side([np.zeros((100, width, 3), np.uint8)], [text])[:-100]


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("tabby, tabby cat", "tabby, tabby cat"),
        ("two\n  lines\tand\xa0space ", "two lines and space"),
        ("crane's “bill”", "crane's “bill”"),
    ],
)
def test_a_caption_is_the_label_on_one_line(label: str, text: str) -> None:
    """Whatever white space it has."""
    assert caption(label, 17) == text


@pytest.mark.parametrize(
    "label",
    [
        *("", " \n\r\t\v\f ", "猫", "猫 (cat)", "кошка #2", "قط مصري", "😀🏳️‍🌈", "café", "Ångström", "en \u2013 dash"),
        *("nul\x00bell\x07escape\x1b[31m", "\ud800 lone surrogate", "a" + "\u0301" * 500, "\u202eright to left\u202c"),
        *("\u200b\u2060\ufeff", "\U0010ffff"),
    ],
)
def test_a_label_that_the_font_lacks_characters_of_is_its_index(label: str) -> None:
    """Never a row of boxes, nor a part of it that reads like another label."""
    assert caption(label, 17) == "class 17"


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300), (120, 160), (2000, 30)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_pictures_stay_as_they_are_below_their_captions(size: tuple[int, int], count: int) -> None:
    """Each stands unchanged below its strip, GAP pixels from the next; one strip height for all."""
    pictures = [photograph(*size, seed) for seed in range(count)]
    joined = join_side_by_side(pictures, ["a long label"] * count)
    strip = joined.shape[0] - size[0]
    assert joined.shape == (size[0] + strip, count * size[1] + (count - 1) * GAP, 3)
    assert 19 <= strip <= 64
    for place, picture in enumerate(pictures):
        left = place * (size[1] + GAP)
        np.testing.assert_array_equal(joined[strip:, left : left + size[1]], picture)


@pytest.mark.parametrize("text", ["", "W" * 100_000, "%s %d {} {0} \\n <b>", "|" * 60])
def test_captions_stay_on_their_strip(text: str) -> None:
    """None changes the strip's height, or reaches into the margin or the next picture's strip."""
    assert strip_of(text).shape == strip_of("plain").shape
    both = join_side_by_side([np.zeros((100, 200, 3), np.uint8)] * 2, [text, ""])[:-100]
    assert bool((both[:, 200 - GAP :] == both[0, 0]).all())


def test_a_caption_is_visible() -> None:
    """Text is drawn whole, with room above and below, and different captions differ."""
    ink = (strip_of("Abj[y|") != strip_of("")).any((1, 2)).nonzero()[0]
    assert ink[0] >= 1
    assert ink[-1] <= len(strip_of("")) - 2
    assert not np.array_equal(strip_of("cat"), strip_of(""))
    assert not np.array_equal(strip_of("cat"), strip_of("dog"))


def test_a_long_caption_ends_with_an_ellipsis() -> None:
    """The longest beginning that fits is kept; where not even the ellipsis fits, the strip is empty."""
    text = "Egyptian cat, tabby, tiger cat and many others of the same kind"
    font = ImageFont.load_default(12)
    fitting = [text[:count].rstrip() + "…" for count in range(len(text)) if font.getlength(text[:count].rstrip() + "…") <= 192]
    np.testing.assert_array_equal(strip_of(text), strip_of(fitting[-1]))
    assert len(fitting[-1]) < len(text)
    assert not np.array_equal(strip_of(text, 30), strip_of("", 30))
    np.testing.assert_array_equal(strip_of(text, 10), strip_of("", 10))


@pytest.mark.parametrize("width", [0, 8, 20, 60, 100, 300])
def test_text_may_lose_its_middle_instead(width: int) -> None:
    """The beginning and the end are kept, of equal length, as much as fits."""
    text, font = "features.7.block.2.expand.convolution", load_font(16)
    short = shorten(text, font, width, middle=True)
    assert font.getlength(short) <= width
    if width == 300:
        assert short == text
    elif short:
        head, tail = short.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(tail) <= len(head) <= len(tail) + 1
        longer = text[: len(head) + 1] + "…" + text[len(text) - len(tail) :]
        assert font.getlength(longer) > width or len(head) > len(tail)


def test_every_picture_needs_a_caption() -> None:
    """One too few is the caller's fault, and an error."""
    with pytest.raises(ValueError, match="shorter"):
        join_side_by_side([photograph(4, 4)] * 2, ["one"])
