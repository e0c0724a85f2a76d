"""README.md's tables against the code: nothing is missing from them, and they name nothing that there is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from camserve.core.config import KEYS, Config, defaults
from camserve.core.config import METHODS as METHOD_NAMES
from camserve.core.config.watching import Monitoring
from camserve.core.errors import KINDS
from camserve.core.labels import Labels
from camserve.core.messages import ModelInfo
from camserve.core.served import Served
from camserve.explain.methods import METHODS
from camserve.monitoring.metrics import METRICS
from camserve.monitoring.reference import CLASS
from camserve.monitoring.statistics import STATISTICS
from camserve.protocol.openapi.document import describe_api
from camserve.protocol.options import OptionReader

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENT = describe_api(Served(Config(), Labels(2), ("features",), ModelInfo("m", "1.0", "sha256:0"), 2))
SCHEMAS = DOCUMENT["components"]["schemas"]
CODE = re.compile(r"`([^`]+)`")


@cache
def section(title: str) -> str:
    """A section's text, without its heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {title}"
    return found[1]


def table(title: str) -> list[list[str]]:
    """The cells of the rows of a section's first table, its head left out."""
    lines = section(title).split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
    return rows


def names(cells: list[str]) -> list[str]:
    """What stands in backticks in these cells, in order."""
    return [name for cell in cells for name in CODE.findall(cell)]


NETWORKS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "efficientnet_lite0": "EfficientNet-Lite0"}
RATES = {
    "predictions/s, stock `image_classifier`": "stock, predictions",
    "predictions/s": "ours, predictions",
    "explanations/s, JSON": "ours, explanations, JSON",
    "explanations/s, overlays as PNG": "ours, explanations, PNG",
    "explanations/s, stock (integrated gradients)": "stock, explanations",
}
"""By the names of README's rows, those of the measurements."""


def results(name: str) -> dict[str, Any]:
    """What was measured, as the benchmarks' README shows it."""
    measured: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    return measured


def test_the_speeds_are_those_that_were_measured() -> None:
    """README's table, of one day and one machine, and the guide's."""
    guide = (ROOT / "deploy" / "README.md").read_text("utf-8")
    measured = {name: results(f"live-{name}") for name in NETWORKS}
    header = "| | " + " | ".join(NETWORKS.values()) + " |"
    assert header in section("Why")
    for row, what in RATES.items():
        medians = [measured[name]["rates"][what]["median"] for name in NETWORKS]
        cells = [f"{median:.0f}" if median >= 10 else f"{median:.1f}" for median in medians]
        assert f"| {row} | {' | '.join(cells)} |" in section("Why")
    for name, title in NETWORKS.items():
        rates = measured[name]["rates"]
        lone = 1000 * rates["lone prediction"]["median"]
        assert f"| {title} | {rates['ours, predictions']['median']:.0f}/s | {lone:.0f} ms |" in guide
        assert measured[name]["conditions"]["date"] in section("Why")


def test_the_ratios_are_those_that_were_measured() -> None:
    """Of the engine, against its own forward pass and another library."""
    medians = {row["what"]: row["median"] for row in results("engine")["rows"] if row["format"] == "contiguous"}
    text = " ".join(section("Why").split())
    for what, words in {
        "explaining over its own plain forward, autograd": "took {} times as long as the model's own plain forward pass",
        "pytorch-grad-cam over ours (autograd)": "pytorch-grad-cam took {} times as long as camserve on the same plain model",
        "pytorch-grad-cam over ours as served (tuned, closed form)": "{} times as long as camserve with the model tuned",
    }.items():
        median = medians[what]
        assert words.format(f"{median:.2f}" if median < 2 else f"{median:.1f}") in text


def test_every_option_has_a_row() -> None:
    """The names that are read, and no others; the choices of those that have few."""
    options = OptionReader(Served(Config(), Labels(2), ("features",))).table
    rows = table("Options")

    assert set(names([row[0] for row in rows])) == set(options)
    text = {name: " ".join(row[1:]) for row in rows for name in names(row[:1])}
    for name in ("method", "format", "colormap"):
        assert set(SCHEMAS[name]["enum"]) <= set(CODE.findall(text[name])), name


def test_every_method_has_a_row() -> None:
    """All six, in the order of the metadata."""
    assert names([row[0] for row in table("Methods")]) == list(METHOD_NAMES) == list(METHODS)


def fields(schema: dict[str, Any]) -> set[str]:
    """The names of all members of an answer."""
    found = set(schema.get("properties", {}))
    for inner in [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")]:
        if isinstance(inner, dict):
            found |= fields(inner)
    return found


def test_every_field_of_an_answer_has_a_row() -> None:
    """As deep as they go, with the warnings' names."""
    told = names([cell for row in table("The answer") for cell in row])
    warnings = SCHEMAS["Answer"]["properties"]["explanations"]["items"]["properties"]["warnings"]["items"]["enum"]

    assert fields(SCHEMAS["Answer"]) <= set(told)
    assert set(warnings) <= set(told)
    assert set(names([row[0] for row in table("The answer")])) <= fields(SCHEMAS["Answer"])


def test_every_header_of_an_answer_is_named() -> None:
    """What pictures and arrays say of themselves."""
    headers = [name for name in DOCUMENT["components"]["headers"] if name.startswith("x-explain")]

    assert len(headers) == 5
    assert set(headers) <= set(CODE.findall(section("The answer")))


def test_every_error_has_a_row() -> None:
    """Status and type, and no type that does not exist."""
    told = {(int(row[0].strip("`")), kind) for row in table("Errors") for kind in names(row[1:2])}

    assert told == {(status, kind) for status, kinds in KINDS.items() for kind in kinds}


@pytest.mark.parametrize("name", list(KEYS))
def test_every_key_has_a_row_with_its_default(name: str) -> None:
    """In the table's last cell: the value as YAML spells it, thousands set off or not."""
    (row,) = (row for row in table("Configuration") if name in names(row[:1]))
    value = defaults()[name]
    cell = row[-1].replace("`", "").replace(",", "").replace("_", "")

    if name == "layers":
        assert "model" in cell
        return
    wanted = [*value] if isinstance(value, tuple) else [value]
    for each in wanted:
        assert (each if isinstance(each, str) else json.dumps(each)) in cell
    if name == "monitor":
        assert f"{Monitoring().interval:g} s" in cell


def test_no_row_names_a_key_that_does_not_exist() -> None:
    """A key that was taken out leaves the table too."""
    assert names([row[0] for row in table("Configuration")]) == list(
        dict.fromkeys(names([row[0] for row in table("Configuration")]))
    )
    assert set(names([row[0] for row in table("Configuration")])) == set(KEYS)


def test_every_route_has_a_row() -> None:
    """Those of the OpenAPI document."""
    told = section("Requests")
    for path in DOCUMENT["paths"]:
        last = re.split(r"[/:]", path.replace("/{version}", ""))[-1]
        assert path.split("/")[1] in told
        assert last in told or last == "{model}"


def test_every_metric_is_named() -> None:
    """In the README, or in the page on monitoring that it points to."""
    pages = [README, *(path.read_text("utf-8") for path in sorted((ROOT / "deploy").rglob("*.md")))]
    told = {name for page in pages for name in CODE.findall(re.sub(r"```.*?```", "", page, flags=re.DOTALL))}

    assert {metric.name for metric in METRICS} <= {name.partition("{")[0] for name in told}


def test_every_alert_has_a_row() -> None:
    """Those of the rules that are shipped, and no others."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    told = re.findall(r"^\| `(Camserve\w+)` \|", section("Watch it"), re.MULTILINE)

    assert sorted(told) == sorted(alerts)


def test_every_statistic_is_named() -> None:
    """By the name that the label `stat` has."""
    assert {*STATISTICS, CLASS} == set(names([row[0] for row in table("Watch it")]))


def test_the_lines_of_python_run(demo: Path, tmp_path: Path) -> None:
    """README's first program, word for word, where the demo's archive is: it says what the server says, and saves the picture."""
    (program,) = re.findall(r"```python\n(import camserve\n\nmodel = .*?)```", README, re.DOTALL)
    (tmp_path / "model_store").mkdir()
    (tmp_path / "model_store" / demo.name).symlink_to(demo)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "handlers")}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert ran.stdout.startswith("tiger cat 0.37")
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.size == (451, 300)
