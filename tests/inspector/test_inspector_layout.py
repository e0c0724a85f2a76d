"""The inspector page's layout in a real browser: long labels, two layers, up to three panes, wide and narrow. Answers are canned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from tests.support.browser import PATIENCE, Visit, data_file

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.labels import Labels
from camserve.core.messages import ModelInfo
from camserve.core.served import Served
from camserve.inspector.page import write_page

HOME = "http://localhost:9"
WORDS = ("Animalia_Chordata_Mammalia_Felis_catus_l", "Donaudampfschifffahrtsgesellschaftskapit", "tabby")
LABELS = Labels(3, {str(index): word for index, word in enumerate(WORDS)})
LAYERS = ("features.denseblock4.denselayer16.conv2", "features.denseblock3")
VIEW = [93.96, 18.75, 357.04, 281.25]

Opened = Callable[..., Visit]


def answer() -> dict[str, Any]:
    """What the server would say of the cat."""
    rows = [{"index": index, "label": word, "probability": 0.5 / (index + 1)} for index, word in enumerate(WORDS)]
    grid = [[(row * column) / 36 for column in range(7)] for row in range(7)]
    map_ = {"heatmap": grid, "range": [0, 0.0003], "region": [200.0, 18.75, 357.04, 281.25], "warnings": []}
    explanations = [{"target": row["index"], **row, **map_} for row in rows]
    return {"classes": rows, "explanations": explanations, "image": {"width": 451, "height": 300, "view": VIEW}}


def respond(route: Route) -> None:
    """The page, its answer to every picture, and the server's own words where a label is asked for that is none."""
    if route.request.method == "GET":
        name = route.request.url.rsplit("/", 1)[1]
        config = Config(random_weights=name == "untrained")
        reply = write_page(Served(config, LABELS, LAYERS, ModelInfo(name, "1.0", "sha256:00")))
        route.fulfill(headers={**reply.headers, "content-type": reply.content_type}, body=reply.body)
    else:
        route.fulfill(json=answer())


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Opens pages of a model that is not there; in the end none has seen an error."""
    visits: list[Visit] = []

    def make(width: int, **options: Any) -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": 860}, **options)
        context.set_default_timeout(PATIENCE)
        visits.append(Visit(context.new_page(), HOME))
        visits[-1].watch()
        visits[-1].page.route(f"{HOME}/**", respond)
        return visits[-1]

    yield make
    for each in visits:
        each.page.context.close()
        assert [fault for fault in each.faults if not re.search(each.expected, fault)] == []


ROOM = """() => {
    const inside = (inner, outer) => inner.left >= outer.left - 0.5 && inner.right <= outer.right + 0.5;
    const box = (e) => e.getBoundingClientRect();
    const needed = (select) => {
        const copy = select.cloneNode(false);
        copy.append(new Option(select.value));
        copy.style.cssText = "position: absolute; max-width: none; width: max-content";
        select.after(copy);
        const { width } = box(copy);
        copy.remove();
        return width;
    };
    const root = document.documentElement;
    const panes = [...document.querySelectorAll(".pane")];
    const faults = root.scrollWidth > root.clientWidth ? [`page ${root.scrollWidth} > ${root.clientWidth}`] : [];
    panes.forEach((pane, index) => {
        if (pane.scrollWidth > pane.clientWidth) faults.push(`pane ${index}: ${pane.scrollWidth} > ${pane.clientWidth}`);
        for (const part of pane.querySelectorAll("figcaption *, .frame, .says, .fine"))
            if (part.checkVisibility() && part.tagName !== "OPTION" && !inside(box(part), box(pane)))
                faults.push(`pane ${index}: ${part.className || part.tagName} sticks out`);
        for (const other of panes.slice(index + 1)) {
            const [a, b] = [box(pane), box(other)];
            if (a.right > b.left && a.bottom > b.top) faults.push(`pane ${index} is under the next`);
        }
        const method = pane.querySelector("select.method");
        if (method.checkVisibility() && box(method).width < needed(method) - 0.5)
            faults.push(`pane ${index}: ${method.value} needs ${needed(method)}, has ${box(method).width}`);
    });
    return faults;
}"""
"""What overlaps, sticks out, or is cut off."""


def bring_to(page: Page, compare: str, layout: str) -> None:
    """Chooses what is shown beside what."""
    page.get_by_label(compare, exact=True).check(force=True)
    page.get_by_label(layout).check(force=True)
    expect(page.locator(".pane")).to_have_count(1 + (compare != "Off") + (layout == "Side by side"))


@pytest.mark.parametrize("width", [320, 390, 600, 910, 1280])
def test_nothing_overlaps_or_is_cut_off(opened: Opened, width: int) -> None:
    """Whatever stands beside what, labels of one long word break, panes keep to themselves, and the method is read whole."""
    tour = opened(width)
    page = tour.explain(model="long")
    for compare in ("Off", "Two classes", "Two methods"):
        for layout in ("Overlay", "Side by side"):
            bring_to(page, compare, layout)
            assert (compare, layout, page.evaluate(ROOM)) == (compare, layout, [])


def test_methods_that_begin_alike_can_be_told_apart_on_a_phone(opened: Opened) -> None:
    """gradcam++ and gradcam: the select is wide enough for each, and says which it is."""
    page = opened(390).explain(model="long")
    method = page.locator("select.method")
    for name in ("gradcam", "gradcam++", "hirescam"):
        method.select_option(name)
        expect(page.locator(".use")).to_contain_text(f"{name},")
        expect(method).to_have_value(name)
        assert page.evaluate(ROOM) == []


def test_an_empty_file_is_refused_in_the_pages_own_words(opened: Opened) -> None:
    """It never reaches the server, which would tell how curl sends pictures; the picture from before stays."""
    tour = opened(1280)
    page = tour.explain(model="long")
    posts = len(tour.posts)
    tour.give(data_file(b"", "empty.png"))

    alert = page.get_by_role("alert")
    expect(alert.locator("h2")).to_have_text("This file is empty")
    expect(alert).to_contain_text("empty.png has 0 bytes")
    expect(alert).not_to_contain_text("curl")
    expect(page.locator(".pane .name .label")).to_have_text(WORDS[0])
    assert len(tour.posts) == posts


def test_a_model_of_random_weights_says_nothing(opened: Opened) -> None:
    """The page says so, and does not put the first class into the model's mouth."""
    trained = opened(1280).explain(model="long")
    expect(trained.locator(".pane .says")).to_contain_text(f"The model says {WORDS[0]}")

    page = opened(1280).explain(model="untrained")

    expect(page.locator("#foot")).to_contain_text("weights are random, its answers mean nothing")
    expect(page.locator(".pane .says")).to_contain_text(f"The model does not decide, {WORDS[0]} comes first")


def test_how_several_classes_are_sent_is_not_told_to_who_types_one(opened: Opened) -> None:
    """The message is the server's own, without what is for programs; the nearest labels are still buttons."""
    tour = opened(1280)
    tour.expected = "status of 400"
    page = tour.explain(model="long")
    with pytest.raises(RequestError) as caught:
        LABELS.index("tabby,")
    error = {"code": 400, "type": caught.value.kind, "message": caught.value.message}
    page.route(f"{HOME}/**", lambda route: route.fulfill(status=400, json=error))
    page.get_by_label("Explain another class").fill("tabby,")
    page.keyboard.press("Enter")

    alert = page.get_by_role("alert")
    expect(alert.locator("p")).to_have_text('No class has the label "tabby,"; the nearest are "tabby"')
    expect(alert.locator(".ways button")).to_have_text(["tabby"])
