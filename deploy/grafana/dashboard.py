#!/usr/bin/env python3
"""The Grafana dashboard, as code: is it healthy, how fast, what does it look at, has that changed, and since when.

python deploy/grafana/dashboard.py    writes camserve.json beside this file (needs grafana-foundation-sdk)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import barchart, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import text as text_builder
from grafana_foundation_sdk.builders.dashboard import (
    CustomVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    TextBoxVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "camserve.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
THIS = 'model_name="$model", model_version="$version"'
BINNED = f'{THIS}, reference="$reference"'
"""Counts by the bins of one reference, and what is made of them."""
UP = '(up{job="camserve"} or up and on (job, instance) camserve:server:seen)'
FIRING = 'ALERTS{alertname=~"Camserve.*", alertstate="firing", model_name=~"$model|"}'
"""Alerts of the model that fire, and those of servers, which have no model's name."""
MAP = "entropy|area|centroid_x|centroid_y|border|overlap|peak"
STATISTICS = (*MAP.split("|"), "confidence", "margin", "brightness", "contrast", "sharpness", "width", "height", "class")
SHOWN = "model=${model:percentencode}&stat=${statistic}&since=${__from}&until=${__to}"
"""What of the evidence page belongs to the dashboard's choice and time range."""
GREEN, ORANGE, RED = "green", "orange", "red"


def query(expr: str, legend: str = "", *, instant: bool = False, table: bool = False) -> prometheus.Dataquery:
    """One query."""
    made = prometheus.Dataquery().expr(expr).legend_format(legend)
    if table:
        made = made.format(PromQueryFormat.TABLE)
    return made.instant() if instant else made.range()


def steps(*limits: tuple[float | None, str]) -> ThresholdsConfig:
    """Colours from each limit upwards."""
    return (
        ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=value, color=color) for value, color in limits])
    )


def number(
    title: str, expr: str, unit: str, *, explained: str, limits: ThresholdsConfig | None = None, words: str = ""
) -> stat.Panel:
    """One number, and how it went; `words` for some numbers, in the colours of `limits`."""
    return (
        stat.Panel()
        .title(title)
        .description(explained)
        .datasource(SOURCE)
        .with_target(query(expr).ref_id("A"))
        .unit(unit)
        .thresholds(limits or steps((None, GREEN)))
        .mappings(
            [ValueMap(options={value: ValueMappingResult(text=word)}) for value, word in re.findall(r"(\S+): (\w+)", words)]
        )
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .no_value("none")
        .span(3)
        .height(4)
    )


def lines(title: str, unit: str, *targets: prometheus.Dataquery, explained: str, span: int, height: int) -> timeseries.Panel:
    """Lines over time."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(explained)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .line_width(1.5)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builder.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .span(span)
        .height(height)
    )
    for name, target in zip("ABC", targets, strict=False):
        made = made.with_target(target.ref_id(name))
    return made


def healthy() -> list[stat.Panel]:
    """Eight numbers. The first two are there whatever is down: what is shown of a server that cannot be read is old."""
    rate = f"camserve_requests_total{{{THIS}}}[$__rate_interval]"
    served = f'sum(increase(camserve_requests_total{{{THIS}, mode=~"predict|explain", outcome="ok"}}[1h]))'
    return [
        number(
            "Alerts",
            f"count({FIRING}) or 0 * max({UP} == 1) or vector(-1)",
            "none",
            explained="Alerts of this model and its servers that fire now; the last panel says which, and since when. Unknown: no"
            " server can be read, and no alert tells so yet.",
            limits=steps((None, RED), (0, GREEN), (1, RED)),
            words="-1: unknown",
        ),
        number(
            "Servers",
            f"avg({UP}) or vector(0)",
            "percentunit",
            explained="Those that Prometheus can read, of all that it knows.",
            limits=steps((None, RED), (0.001, ORANGE), (1, GREEN)),
            words="0: down, 1: up",
        ),
        number("Requests", f"sum(rate({rate})) or vector(0)", "reqps", explained="Answers a second, of all kinds."),
        number(
            "Unanswered",
            'max(camserve:unanswered:ratio{model_name="$model", window="10m"})',
            "percentunit",
            explained="Requests of the last ten minutes that no worker has answered: refused by a full queue, lost with a worker,"
            " or still waiting. Of all versions.",
            limits=steps((None, GREEN), (0.01, ORANGE), (0.05, RED)),
        ),
        number(
            "Errors",
            f'sum(rate(camserve_requests_total{{{THIS}, outcome="server_error"}}[10m]))'
            f" / (sum(rate(camserve_requests_total{{{THIS}}}[10m])) > 0)",
            "percentunit",
            explained="Answers 500 and 507 of the workers in the last ten minutes.",
            limits=steps((None, GREEN), (0.001, ORANGE), (0.01, RED)),
        ),
        number(
            "Maps that say nothing",
            f"sum(increase(camserve_degenerate_maps_total{{{THIS}}}[1h]))"
            f" / (sum(increase(camserve_maps_total{{{THIS}}}[1h])) > 0)",
            "percentunit",
            explained="Zero, constant or not finite, of the last hour's.",
            limits=steps((None, GREEN), (0.01, ORANGE), (0.05, RED)),
        ),
        number(
            "Measured",
            f"sum(increase(camserve_maps_total{{{THIS}}}[1h])) / ({served} > 0)",
            "percentunit",
            explained="Maps measured for each request of the last hour: below 100 % where the rate is, or where maps take"
            " backward passes and the budget skips some; above it where requests hold several pictures.",
        ),
        number(
            "Reference",
            f'max(camserve_map_reference_images{{{THIS}, stat="class"}})',
            "short",
            explained="Pictures in the archive's reference. None: scripts/reference.py makes one; without it no drift is told.",
        ),
    ]


def fast() -> list[timeseries.Panel]:
    """Where the time goes."""
    return [
        lines(
            "Stages, 95 of 100 take less than",
            "s",
            query(f"camserve:stage_seconds:p95_10m{{{THIS}}}", "{{stage}}"),
            explained="batch: all of it. decode: one picture. backward: all maps of a pass, those that are only measured too.",
            span=8,
            height=6,
        ),
        lines(
            "Mean time to an answer, and waiting in the queue",
            "s",
            query('camserve:latency_seconds:mean10m{model_name="$model"}', "answer"),
            query('camserve:queue_seconds:mean10m{model_name="$model"}', "queue"),
            explained="As TorchServe counts it, of answered requests of all versions of the model.",
            span=8,
            height=6,
        ),
        lines(
            "Requests",
            "reqps",
            query(
                f"sum by (mode, outcome) (rate(camserve_requests_total{{{THIS}}}[$__rate_interval])) > 0", "{{mode}}, {{outcome}}"
            ),
            query(f"sum(rate(camserve_maps_total{{{THIS}}}[$__rate_interval]))", "maps measured"),
            query('sum(rate(ts_inference_requests_total{model_name="$model"}[$__rate_interval]))', "all that came"),
            explained="Answers by mode and outcome. What came, for all versions of the model, is more when the queue is full.",
            span=8,
            height=6,
        ),
    ]


def bars(title: str, now: str, then: str, *, names: tuple[str, str], field: str, explained: str, span: int) -> barchart.Panel:
    """Shares now beside shares as they should be, bin by bin."""
    return (
        barchart.Panel()
        .title(title)
        .description(explained)
        .datasource(SOURCE)
        .with_target(query(now, instant=True, table=True).ref_id("A"))
        .with_target(query(then, instant=True, table=True).ref_id("B"))
        .with_transformation(DataTransformerConfig(id_val="joinByField", options={"byField": field, "mode": "outer"}))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True, "Time 1": True, "Time 2": True},
                    "renameByName": {"Value #A": names[0], "Value #B": names[1]},
                },
            )
        )
        .with_transformation(DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": field}]}))
        .x_field(field)
        .unit("percentunit")
        .min(0)
        .show_value(common.VisibilityMode.NEVER)
        .fill_opacity(70)
        .legend(
            common_builder.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .span(span)
        .height(7)
    )


def looks() -> list[Any]:
    """What the maps are like, and of which classes."""
    chosen = f'{BINNED}, window="$window", stat="$statistic"'
    mix = f'{BINNED}, window="$window", stat="class"'
    return [
        bars(
            "$statistic: shares of the reference's ten bins",
            f"sum by (bin) (camserve:map_bin:ratio{{{chosen}}})",
            f"sum by (bin) (camserve:map_bin:expected{{{chosen}}})"
            f' or sum by (bin) (camserve:map_bin:reference{{{BINNED}, stat="$statistic"}})',
            names=("now", "expected at this class mix"),
            field="bin",
            explained="Bin 0 holds the lowest values. The edges are in explain_reference.json of the archive.",
            span=12,
        ),
        bars(
            "Predicted classes, in groups",
            f"sum by (bin) (camserve:map_bin:ratio{{{mix}}})",
            f'sum by (bin) (camserve:map_bin:reference{{{BINNED}, stat="class"}})',
            names=("now", "reference"),
            field="bin",
            explained="Groups of classes as the reference has them; 9 holds those that it has not seen: as many are to be"
            " expected as came up only once in it. Maps of those are not compared.",
            span=12,
        ),
    ]


def changed() -> list[Any]:
    """Drift over time, and the alerts' history."""
    limit = steps((None, "transparent"), (1, RED))
    excess = (
        lines(
            "Drift: PSI over what chance explains",
            "none",
            query(f'camserve:map_psi:excess{{{BINNED}, window="$window", stat=~"{MAP}"}}', "{{stat}}"),
            explained="Of the maps, at the window's mix of class groups. Above 1 (the line) it is no longer chance, but may still"
            " be another mix inside a group.",
            span=12,
            height=8,
        )
        .thresholds(limit)
        .thresholds_style(common_builder.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.LINE))
        .axis_soft_max(1.5)
    )
    rest = (
        lines(
            "The same of the pictures, the scores and the class mix",
            "none",
            query(f'camserve:map_psi:excess{{{BINNED}, window="$window", stat!~"{MAP}"}}', "{{stat}}"),
            explained="If these moved at the same time, look at the camera, or at who sends pictures, before the model.",
            span=12,
            height=8,
        )
        .thresholds(limit)
        .thresholds_style(common_builder.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.LINE))
        .axis_soft_max(1.5)
    )
    since = (
        statetimeline.Panel()
        .title("Alerts, and since when")
        .datasource(SOURCE)
        .with_target(
            query(
                f"max by (alertname, stat, instance) ({FIRING})",
                "{{alertname}} {{stat}} {{instance}}",
            ).ref_id("A")
        )
        .mappings([ValueMap(options={"1": ValueMappingResult(text="firing", color=RED)})])
        .show_value(common.VisibilityMode.NEVER)
        .no_value("no alert in this time")
        .row_height(0.7)
        .span(24)
        .height(5)
    )
    return [excess, rest, since]


def seen() -> list[Any]:
    """The pictures behind it: a page beside Grafana draws them, and knows them by the time range."""
    drawn = (
        text_builder.Panel()
        .title("The latest unusual pictures")
        .description("What was kept as evidence, with what the model looked at. Where nothing is shown, none is kept, or the page"
                     " is not at the address above: scripts/inspector.py URL --evidence DIR --port 8090.")
        .mode(TextMode.HTML)
        .content(
            f'<a href="${{evidence}}/evidence?{SHOWN}" target="_blank">'
            f'<img src="${{evidence}}/evidence/latest.jpg?{SHOWN}" alt="What was kept; the link opens all of it"></a>'
        )
        .span(24)
        .height(9)
    )  # fmt: skip
    return [drawn]


def variables(board: Dashboard) -> Dashboard:
    """What can be chosen above."""

    def custom(name: str, label: str, values: tuple[str, ...]) -> CustomVariable:
        options = [VariableOption(selected=value == values[0], text=value, value=value) for value in values]
        return CustomVariable(name).label(label).values(",".join(values)).current(options[0]).options(options)

    def labels(name: str, expr: str) -> QueryVariable:
        return QueryVariable(name).label(name).datasource(SOURCE).query(expr).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)

    references = labels("reference", f'query_result(camserve_map_reference_images{{{THIS}, stat="class"}})')
    return (
        board.with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus").hide(VariableHide.DONT_HIDE))
        .with_variable(labels("model", "label_values(camserve_requests_total, model_name)"))
        .with_variable(labels("version", 'label_values(camserve_requests_total{model_name="$model"}, model_version)'))
        .with_variable(references.regex('/reference="([^"]+)"/'))  # those that are served when the time range ends
        .with_variable(custom("window", "window", ("1h", "1d")))
        .with_variable(custom("statistic", "statistic", STATISTICS))
        .with_variable(
            TextBoxVariable("evidence")
            .label("evidence page")
            .default_value("http://127.0.0.1:8090")
            .current(VariableOption(selected=True, text="http://127.0.0.1:8090", value="http://127.0.0.1:8090"))
        )
    )


def dashboard() -> Dashboard:
    """The whole of it."""
    board = (
        Dashboard("What the model looks at")
        .uid("camserve")
        .tags(["camserve", "torchserve"])
        .description("Health, speed and the drift of explanations of a model served with camserve.")
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )
    board = variables(board)
    sections = (
        ("Is it healthy?", healthy()),
        ("How fast?", fast()),
        ("What does it look at?", looks()),
        ("Has that changed, and since when?", changed()),
        ("Which pictures are behind it?", seen()),
    )
    board = board.link(
        DashboardLink("The pictures behind it")
        .type(DashboardLinkType.LINK)
        .url(f"${{evidence}}/evidence?{SHOWN}")
        .tooltip("What was kept as evidence in this time range")
        .target_blank(True)
    )
    for title, panels in sections:
        board = board.with_row(Row(title))
        for panel in panels:
            board = board.with_panel(panel)
    return board


def text() -> str:
    """The dashboard as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text())
