"""Every alert can fire, and stays silent where all is well, at each setting of `monitor` that the documents recommend."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tests.conftest import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
MINUTES = 200
RATES = {"all": (1.0, 0.0), "sampled": (0.05, 0.0), "budget": (1.0, 0.95)}
"""The share that is sampled, and the share of that which the budget passes over: by default, `{rate: 0.05}` as for compiled
models, and a model whose maps take backward passes."""
STATS = {
    "CamserveAttentionDrift": "entropy",
    "CamserveAttentionDriftLarge": "entropy",
    "CamserveConfidenceDrift": "confidence",
    "CamserveInputDrift": "brightness",
    "CamserveClassMixDrift": "class",
}
COUNTED = ("CamserveErrors", "CamserveDead", "CamserveRefused", "CamserveSlow", "CamserveNoTraffic")
"""Those that look at every request whatever is sampled: one setting stands for all."""
WELL = ("CamserveAttentionDrift", "CamserveConfidenceDrift", "CamserveInputDrift", "CamserveNotMeasured quiet")
"""Cases whose healthy models have all the series that there are."""
COME, GO = 100.0, 60
"""Requests a minute; the minute after which what ends has ended."""
MODEL_ALERTS = {
    rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
}
CASES = [*sorted(MODEL_ALERTS - {"CamserveDown"}), "CamserveNotMeasured failing", "CamserveNotMeasured quiet"]


def rising(each: float) -> str:
    """A counter that grows by so much a minute."""
    return f"0+{each:g}x{MINUTES}"


def ending(each: float) -> str:
    """A counter that stands still after a while."""
    return f"0+{each:g}x{GO} {each * GO:g}x{MINUTES - GO}"


def traffic(case: str, setting: str, *, ill: bool) -> dict[str, str]:
    """The series of one model by their names: with what the case's alert is for, or in good health."""
    rate, passed_over = RATES[setting]
    name = f"{case} {setting} {'ill' if ill else 'well'}"
    come = 4.0 if case.endswith("quiet") and setting == "sampled" else COME
    sampled = come * rate
    maps = sampled * (1 - passed_over)
    about = f'job="camserve",instance="a",model_name="{name}",model_version="1"'
    asked = about.replace('"1"', '"default"')
    values = {
        f"ts_inference_requests_total{{{asked}}}": rising(come),
        f"ts_inference_latency_microseconds{{{asked}}}": rising(come * 50_000),
        f'camserve_requests_total{{{about},mode="predict",outcome="ok"}}': rising(come),
        f'camserve_requests_total{{{about},mode="predict",outcome="server_error"}}': rising(0),
        f"camserve_maps_total{{{about}}}": rising(maps),
        f'camserve_unmeasured_maps_total{{{about},reason="failed"}}': rising(0),
        f'camserve_unmeasured_maps_total{{{about},reason="budget"}}': rising(sampled * passed_over),
        f"camserve_monitored_ratio{{{about}}}": f"{rate:g}x{MINUTES}",
        f'camserve_degenerate_maps_total{{{about},reason="zero"}}': rising(0),
        f'camserve_evidence_dropped_total{{{about},reason="quota"}}': rising(maps / 100),
        f'camserve_evidence_dropped_total{{{about},reason="slow"}}': rising(0),
        **(drift(about, STATS[case], maps, ill=ill) if case in STATS else {}),
    }
    if not ill and case.endswith("quiet") and setting == "sampled":  # by chance none is sampled for a while
        values[f"camserve_maps_total{{{about}}}"] = ending(maps)
    return {**values, **(harm(case, values, come, maps) if ill else {})}


def harm(case: str, values: Mapping[str, str], come: float, maps: float) -> dict[str, str]:
    """Those series of the model that its alert is about."""
    series = {
        re.sub(r".*outcome=\"(\w+)\".*|.*reason=\"(\w+)\".*|\{.*", r"\1\2", key) or key.partition("{")[0]: key for key in values
    }
    changes: Mapping[str, Mapping[str, str]] = {
        "CamserveEvidenceLost": {"slow": rising(maps / 100)},
        "CamserveDegenerateMaps": {"zero": rising(maps / 10)},
        "CamserveErrors": {"ok": rising(come * 0.95), "server_error": rising(come * 0.05)},
        "CamserveDead": {"ok": ending(come), "ts_inference_latency_microseconds": ending(come * 50_000)},
        "CamserveRefused": {"ok": rising(come * 0.6), "ts_inference_latency_microseconds": rising(come * 30_000)},
        "CamserveSlow": {"ts_inference_latency_microseconds": rising(come * 2_000_000)},
        "CamserveNoTraffic": {"ok": ending(come), "ts_inference_requests_total": ending(come)},
        "CamserveNotMeasured": {"camserve_maps_total": rising(0)},
        "CamserveNotMeasured quiet": {"camserve_maps_total": rising(0)},
        "CamserveNotMeasured failing": {"camserve_maps_total": rising(maps * 0.9), "failed": rising(maps * 0.1)},
    }
    return {series[name]: value for name, value in changes.get(case, {}).items()}


def drift(about: str, stat: str, maps: float, *, ill: bool) -> dict[str, str]:
    """The bins of a statistic: half and half in the reference and where all is well, else four to one."""
    about += ',reference="r"'
    values = {f'camserve_group_reference_images{{{about},class_group="0"}}': f"1000x{MINUTES}"}
    for each in {stat, "class"}:
        values[f'camserve_map_reference_images{{{about},stat="{each}"}}'] = f"1000x{MINUTES}"
        for place, share in (("0", 0.8), ("1", 0.2)):
            labels = f'{about},stat="{each}",bin="{place}"'
            values[f"camserve_map_bin_reference_ratio{{{labels}}}"] = f"0.5x{MINUTES}"
            if each != "class":
                values[f'camserve_map_bin_group_reference_ratio{{{labels},class_group="0"}}'] = f"0.5x{MINUTES}"
            alone = each == "class" and stat != "class"  # the mix is the reference's: all are of one group
            now = (1.0 if place == "0" else 0.0) if alone else share if ill and each == stat else 0.5
            values[f"camserve_map_bin_total{{{labels}}}"] = rising(maps * now)
            if alone:
                values[f"camserve_map_bin_reference_ratio{{{labels}}}"] = f"{now:g}x{MINUTES}"
    return values


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus: apt-get install prometheus")
def test_every_alert_can_fire_and_be_silent_at_each_setting(tmp_path: Path) -> None:
    """An alert that no traffic at a recommended setting can raise would be a promise that is not kept."""
    series = {'up{job="camserve",instance="a"}': f"1x{MINUTES}", 'up{job="camserve",instance="b"}': f"1x{GO} 0x{MINUTES - GO}"}
    settings = {case: [each for each in RATES if case not in COUNTED or each == "sampled"] for case in CASES}
    fired = {case: [f"{case} {setting} ill" for setting in settings[case]] for case in CASES}
    for case in CASES:
        for setting in settings[case]:
            series |= traffic(case, setting, ill=True) | (traffic(case, setting, ill=False) if case in WELL else {})
    window = f"[{MINUTES}m]"
    tests = [
        {
            "expr": f"group by (alertname, model_name) (count_over_time(ALERTS{{{which}}}{window}))",
            "eval_time": f"{MINUTES}m",
            "exp_samples": [{"labels": f'{{alertname="{name.split()[0]}", model_name="{name}"}}', "value": 1} for name in names],
        }
        for which, names in {
            'alertstate="firing", model_name=~".* well"': [],
            **{
                f'alertstate="firing", alertname="{case.split()[0]}", model_name=~"{case} [a-z]+ ill"': names
                for case, names in fired.items()
            },
        }.items()
    ]
    down = {"expr": 'group by (instance) (ALERTS{alertname="CamserveDown"})', "eval_time": f"{MINUTES}m"}
    tests.append({**down, "exp_samples": [{"labels": '{instance="b"}', "value": 1}]})
    given = [{"series": name, "values": values} for name, values in series.items()]
    suite = {"interval": "1m", "input_series": given, "promql_expr_test": tests}
    text = yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": [suite]})
    (tmp_path / "test.yml").write_text(text)
    ran = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
