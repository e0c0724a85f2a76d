"""The inspector page as a document: what the handler puts into it, and the policy around it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from tests.support.build import HOSTILE

from camserve.core.config import COLORMAPS, METHODS, Config
from camserve.core.labels import Labels
from camserve.core.messages import ModelInfo, Reply
from camserve.core.served import Served
from camserve.inspector.html import fill, write_policy, write_script_json
from camserve.inspector.page import write_page

INFO = ModelInfo('m<"&', "1.0", "sha256:00")


def write(labels: Labels, **settings: Any) -> Reply:
    """The page of a model with two layers."""
    return write_page(Served(Config(**settings), labels, ("layer4", "layer3"), INFO))


def facts_of(reply: Reply) -> dict[str, Any]:
    """The JSON that the page's scripts read."""
    text = re.search(rb'id="facts">(.*?)</script>', reply.body, re.DOTALL)
    assert text is not None
    facts: dict[str, Any] = json.loads(text[1])
    return facts


def test_the_page_knows_the_model_and_what_may_be_asked() -> None:
    """Names, layers, methods, defaults and limits are the archive's; colour tables are the renderer's."""
    facts = facts_of(write(Labels(3, {"0": "a", "1": "b", "2": "c"}), method="layercam", opacity=0.25, exif=True, max_targets=7))

    assert (facts["model"], facts["version"], facts["weights"], facts["classes"]) == ('m<"&', "1.0", "sha256:00", 3)
    assert (facts["checks"], facts["checked"]) == (True, False)
    assert (facts["layers"], facts["layer"]) == (["layer4", "layer3"], "layer4")
    assert ([method["name"] for method in facts["methods"]], facts["method"]) == (list(METHODS), "layercam")
    assert (facts["opacity"], facts["exif"], facts["max_targets"], facts["labels"]) == (0.25, True, 7, ["a", "b", "c"])
    assert list(facts["colormaps"]) == list(COLORMAPS)
    assert {len(table) for table in facts["colormaps"].values()} == {256 * 6}
    assert facts["colormaps"]["gray"][:12] == "000000010101"
    assert (facts["colormaps"]["viridis"][:6], facts["colormaps"]["viridis"][-6:]) == ("440154", "fde725")
    assert [sample["name"] for sample in facts["samples"]] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]


@pytest.mark.parametrize("labels", [Labels(3), Labels(2, {"0": "x" * 60_000, "1": "y" * 60_000})])
def test_labels_that_do_not_help_are_left_out(labels: Labels) -> None:
    """Where indices are the names, and where the list would outweigh the page."""
    reply = write(labels)
    assert facts_of(reply)["labels"] is None
    assert len(reply.body) < 300_000


def test_nothing_hostile_ends_an_element() -> None:
    """Labels and the model's name stay inside the data and the title; what looks like a placeholder is not filled."""
    reply = write(Labels(3, HOSTILE))
    text = reply.body.decode()

    assert facts_of(reply)["labels"] == list(HOSTILE.values())
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<title>m&lt;&quot;&amp;: camserve inspector</title>" in text
    assert text.count('id="facts"') == 1


def test_the_policy_names_exactly_what_is_in_the_page() -> None:
    """Each inline script and the style sheet by its hash; no handler in an attribute, no style attribute, nothing from elsewhere."""
    reply = write(Labels(2))
    text = reply.body.decode()
    inline = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
    wanted = {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inline}

    assert set(re.findall(r"'sha256-(.*?)'", reply.headers["content-security-policy"])) == wanted
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert not re.search(r'<[^>]* (on\w+|style)="', re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL))
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert reply.content_type == "text/html; charset=utf-8"
    assert all(value.isascii() and "\n" not in value for value in reply.headers.values())


def test_a_template_is_filled_in_one_pass() -> None:
    """A part that holds another part's name is left as it is."""
    assert fill("{{a}} {{b}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2"


def test_json_in_a_script_cannot_end_it() -> None:
    """No tag, comment or line separator of JavaScript's comes through, and the value stays the same."""
    value = ["</script>", "<!--", "\u2028", "é", "&amp;"]
    text = write_script_json(value)
    assert not set("<>&\u2028é") & set(text)
    assert json.loads(text) == value


def test_a_policy_without_a_server_allows_no_request() -> None:
    """As in the gallery, which is a file."""
    assert "connect-src 'none'" in write_policy("", ["x"])


def test_a_model_of_tensors_alone_is_given_no_pictures() -> None:
    """The page asks for an `.npy` file, and offers no samples."""
    facts = facts_of(write(Labels(3), channels=5))
    assert (facts["tensors"], facts["samples"]) == (5, [])
    assert facts_of(write(Labels(3), channels=1))["tensors"] == 0
