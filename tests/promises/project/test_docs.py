"""README and docs/ against the code: nothing is missing from them, and they name nothing that there is not."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import ResNet18_Weights

import camserve
from camserve.core.config import KEYS, REFINECAM, Config, defaults
from camserve.core.config import METHODS as METHOD_NAMES
from camserve.core.config.watching import Monitoring
from camserve.core.errors import KINDS
from camserve.core.labels import Labels
from camserve.core.messages import ModelInfo
from camserve.core.served import Measurement, Served
from camserve.explain.methods import METHODS
from camserve.monitoring.metrics import METRICS
from camserve.monitoring.reference import CLASS
from camserve.monitoring.statistics import STATISTICS
from camserve.protocol.openapi.document import describe_api
from camserve.protocol.options import OptionReader
from camserve.tools.cli import COMMANDS
from camserve.tools.commands import package

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
MEASURED = Measurement("sha256:0", "2026-11-30", 20, ("features", "gradcam"), {})
DOCUMENT = describe_api(Served(Config(), Labels(2), ("features",), ModelInfo("m", "1.0", "sha256:0"), 2, measurement=MEASURED))
SCHEMAS = DOCUMENT["components"]["schemas"]
CODE = re.compile(r"`([^`]+)`")
sys.path.insert(0, str(DOCS / "tools"))
tables = importlib.import_module("tables")


@cache
def page(name: str) -> str:
    """A page of the documentation."""
    return (DOCS / f"{name}.md").read_text("utf-8")


def section(name: str, title: str) -> str:
    """The text under one heading of a page, up to the next of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    assert found, f"docs/{name}.md has no section {title}"
    return found[1]


def table(name: str) -> list[list[str]]:
    """The cells of the rows of a page's first table, its head left out."""
    lines = page(name).split("\n")
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


def headings(name: str, level: int = 2) -> list[str]:
    """A page's headings of one level, in order."""
    return re.findall(rf"^{'#' * level} (.+)$", page(name), re.MULTILINE)


def fields_told() -> list[str]:
    """The fields of an answer that have a line of their own."""
    return names(
        [line.split(":")[0] for line in section("reference/answers", "Fields").split("\n") if line.lstrip().startswith("- ")]
    )


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
    guide = page("operate/sizing")
    measured = {name: results(f"live-{name}") for name in NETWORKS}
    assert "| | " + " | ".join(NETWORKS.values()) + " |" in README
    for row, what in RATES.items():
        medians = [measured[name]["rates"][what]["median"] for name in NETWORKS]
        cells = [f"{median:.0f}" if median >= 10 else f"{median:.1f}" for median in medians]
        assert f"| {row} | {' | '.join(cells)} |" in README
    for name, title in NETWORKS.items():
        rates = measured[name]["rates"]
        lone = 1000 * rates["lone prediction"]["median"]
        assert f"| {title} | {rates['ours, predictions']['median']:.0f}/s | {lone:.0f} ms |" in guide
        assert measured[name]["conditions"]["date"] in README


def test_the_rates_in_faster_runtimes_are_those_that_were_measured() -> None:
    """In README, of one day and one machine."""
    text = " ".join(README.split())
    for name, title in {
        "mobilenet_v3_large": "MobileNetV3-Large", "efficientnet_b0": "EfficientNet-B0", "resnet50-onnxruntime": "ResNet-50"
    }.items():  # fmt: skip
        measured = results(f"live-{name}")
        (ratio,) = [row["median"] for row in measured["rows"] if row["what"].startswith("our predictions/s over the stock")]
        assert f"{ratio:.2f} ({title})" in text
        assert f"on {measured['conditions']['date']}." in text
        assert "AVX512" in measured["conditions"]["torch's threads"]


def test_the_ratios_are_those_that_were_measured() -> None:
    """Of the engine, against its own forward pass and another library."""
    medians = {row["what"]: row["median"] for row in results("engine")["rows"] if row["format"] == "contiguous"}
    text = " ".join(README.split())
    for what, words in {
        "explaining over its own plain forward, autograd": "took {} times as long as the model's own plain forward pass",
        "pytorch-grad-cam over ours (autograd)": "pytorch-grad-cam took {} times as long as camserve on the same plain model",
        "pytorch-grad-cam over ours as served (tuned, closed form)": "{} times as long as camserve with the model tuned",
    }.items():
        median = medians[what]
        assert words.format(f"{median:.2f}" if median < 2 else f"{median:.1f}") in text


def test_the_arithmetic_of_sizing_is_that_of_what_was_measured() -> None:
    """What a core does is half of what two do; core hours, minutes and cores follow."""
    guide = page("operate/sizing")
    rates = [results(f"live-{name}")["rates"]["ours, explanations, JSON"]["median"] / 2 for name in NETWORKS]
    rates = [rates[index] for index in (2, 0, 1)]  # the guide's order: the smallest first
    for title, rate in zip(("EfficientNet-Lite0", "ResNet-18", "ResNet-50"), rates, strict=True):
        assert f"| {title} | {rate:.0f} | {0.9 * rate:.0f} |" in guide
    hours = [1e6 / (0.9 * rate) / 3600 for rate in rates]
    assert f"| core hours a million | {' | '.join(f'{each:.1f}' for each in hours)} |" in guide
    minutes = [60 * each / 16 for each in hours]
    assert f"| on a machine of 16 cores | {' | '.join(f'{each:.0f} minutes' for each in minutes)} |" in guide
    assert f"| cores, as a job | {' | '.join(f'{1000 / (0.9 * rate):.0f}' for rate in rates)} |" in guide
    assert f"| cores online, at 60 % load | {' | '.join(f'{1000 / rate / 0.6:.0f}' for rate in rates)} |" in guide


@pytest.mark.parametrize("name", tables.PARTS)
def test_what_the_code_knows_is_written_as_it_is(name: str) -> None:
    """Options, keys and commands: the pages hold what `docs/tools/tables.py` makes now."""
    assert tables.page(name) == page(f"reference/{name}"), "run docs/tools/tables.py"


def test_every_key_and_option_has_a_section() -> None:
    """That can be linked; words beside the code's own name keys and options that there are."""
    assert headings("reference/configuration", 3) == list(defaults()) != []
    assert set(KEYS) == set(defaults())
    assert headings("reference/options") == list(OptionReader(Served(Config(), Labels(2), ("features",))).table)
    assert headings("reference/commands") == list(COMMANDS)
    assert set(tables.MORE) <= set(KEYS)
    assert set(tables.MORE_OF_OPTIONS) <= set(headings("reference/options"))
    assert f"every {Monitoring().interval:g} s" in tables.MORE["monitor"]


def test_every_method_has_a_row() -> None:
    """All six and the one of several layers, in the order of the metadata; the six have figures where they are compared."""
    assert tuple(METHOD_NAMES) == tuple(METHODS)
    assert names([row[0] for row in table("understand/methods")]) == [*METHOD_NAMES, REFINECAM]
    measured = section("understand/methods", "Measured")
    assert set(METHOD_NAMES) <= set(CODE.findall(measured))


def fields(schema: dict[str, Any]) -> set[str]:
    """The names of all members of an answer."""
    found = set(schema.get("properties", {}))
    for inner in [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")]:
        if isinstance(inner, dict):
            found |= fields(inner)
    return found


def test_every_field_of_an_answer_has_a_line() -> None:
    """As deep as they go, with the warnings' names."""
    told = CODE.findall(section("reference/answers", "Fields"))
    warnings = SCHEMAS["Answer"]["properties"]["explanations"]["items"]["properties"]["warnings"]["items"]["enum"]

    assert fields(SCHEMAS["Answer"]) <= set(told)
    assert set(warnings) <= set(told)
    assert set(fields_told()) <= fields(SCHEMAS["Answer"])


def test_every_header_of_an_answer_is_named() -> None:
    """What pictures and arrays say of themselves."""
    headers = [name for name in DOCUMENT["components"]["headers"] if name.startswith("x-explain")]

    assert len(headers) == 6
    assert set(headers) <= set(CODE.findall(section("reference/answers", "Pictures and arrays")))


def test_every_error_has_a_row() -> None:
    """Status and type, and no type that does not exist."""
    told = {(int(row[0].strip("`")), kind) for row in table("reference/errors") for kind in names(row[1:2])}

    assert told == {(status, kind) for status, kinds in KINDS.items() for kind in kinds}


def test_every_key_of_the_metadata_is_named() -> None:
    """Those of any model, of several labels and of one output of several."""
    layers = [
        torch.nn.Conv2d(3, 4, 8, 8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    ]
    model = camserve.Model(torch.nn.Sequential(*layers), layers=["1"], resize=32, crop=32, scores="sigmoid")
    told = set(CODE.findall(section("reference/requests", "Metadata").split("```")[2]))
    assert {*model.metadata, "output"} <= told
    assert "threshold" in model.metadata


def test_every_route_has_a_row() -> None:
    """Those of the OpenAPI document."""
    told = page("reference/requests")
    for path in DOCUMENT["paths"]:
        last = re.split(r"[/:]", path.replace("/{version}", ""))[-1]
        assert path.split("/")[1] in told
        assert last in told or last == "{model}"


def test_every_metric_and_statistic_is_named() -> None:
    """Metrics by their names, statistics by those that the label `stat` has."""
    told = {name.partition("{")[0] for name in CODE.findall(page("reference/metrics"))}

    assert {metric.name for metric in METRICS} <= told
    assert {*STATISTICS, CLASS} == set(names([row[0] for row in table("reference/metrics")]))


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


@pytest.mark.slow
def test_the_start_packages_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command, word for word, with weights and names of five classes as it describes them."""
    (line,) = re.findall(r"^\$ scripts/package\.py (--torchvision .*)$", page("start/first"), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_store").mkdir()
    net = torchvision.models.resnet18(num_classes=5)
    torch.save(net.state_dict(), "net.pth")
    Path("classes.txt").write_text("cat\ndog\ncow\nhen\nfox\n", "utf-8")

    assert package.main(line.split()) == 0

    (explanation,) = camserve.Model.from_archive("model_store/mine.mar").explain(ROOT / "examples" / "cat.jpg")
    with torch.no_grad():
        scores = net.eval()(ResNet18_Weights.DEFAULT.transforms()(Image.open(ROOT / "examples" / "cat.jpg"))[None])
    assert explanation.label == ["cat", "dog", "cow", "hen", "fox"][int(scores.argmax())]
