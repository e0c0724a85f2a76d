"""What an archive asks for, what a server says of it, and how both are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.monitoring.keeping import SOURCE
from tests.support.monitoring.monitors import METRICS_YAML, Output

from camserve.core.config import Config
from camserve.core.config.switch import KEEP, KEEP_AT, overrule_evidence, tell_why_not
from camserve.core.errors import ConfigError
from camserve.monitoring.evidence.keeper import Keeper
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.metrics import METRICS, undeclared
from camserve.tools.serving.configuration.addresses import Settings
from camserve.tools.serving.configuration.environment import compose_evidence
from camserve.tools.serving.process.errors import ServeError


@pytest.mark.parametrize(
    ("asked", "said", "kept"),
    [
        (None, {}, None),
        (True, {}, (None, 60)),
        ({"to": "/a", "sample": 5}, {}, ("/a", 5)),
        ({"to": "/a", "sample": 5}, {KEEP: "false", KEEP_AT: "/b"}, None),
        ({"to": "/a", "sample": 5}, {KEEP_AT: "/b"}, ("/b", 5)),
        ({"to": "/a", "sample": 5}, {KEEP: "true"}, ("/a", 5)),
        (None, {KEEP: "True", KEEP_AT: "s3://b/c"}, ("s3://b/c", 60)),
        (None, {KEEP_AT: "/b"}, None),
        (False, {KEEP: "true", KEEP_AT: "/b"}, ("/b", 60)),
        (None, {KEEP: ""}, None),
    ],
)
def test_the_server_has_the_last_word(asked: Any, said: dict[str, str], kept: tuple[str | None, int] | None) -> None:
    """It forces or forbids, and says where; an archive says how much."""
    config = overrule_evidence(Config.from_mapping({} if asked is None else {"evidence": asked}), said)
    keeping = config.keeping
    assert (keeping and (keeping.to, keeping.sample)) == kept


@pytest.mark.parametrize("said", [{KEEP: "yes"}, {KEEP: "true", KEEP_AT: "evidence"}, {KEEP: "true", KEEP_AT: "s3://"}])
def test_what_the_server_says_is_read_strictly(said: dict[str, str]) -> None:
    """A slip must neither keep pictures nor lose them."""
    with pytest.raises(ConfigError, match=r"CAMSERVE_EVIDENCE.*expected"):
        overrule_evidence(Config(), said)


def test_why_nothing_is_kept_is_told() -> None:
    """Who looks for evidence and finds none is to know why."""
    assert "does not ask" in tell_why_not(Config())
    assert "server forbids" in tell_why_not(overrule_evidence(Config.from_mapping({"evidence": True}), {KEEP: "false"}))
    assert "not watched" in tell_why_not(Config(evidence=True, monitor=False))


@pytest.mark.parametrize(
    ("asked", "fault"),
    [(True, "CAMSERVE_EVIDENCE_TO"), ({"to": "s3://b/c"}, r"camserve\[s3\]"), ({"to": "none://b/c"}, "none://")],
)
def test_a_place_that_cannot_be_used_stops_the_load(asked: Any, fault: str) -> None:
    """In one line, when the archive loads."""
    config = Config.from_mapping({"evidence": asked})
    with pytest.raises(ConfigError, match=rf"explain: evidence: .*{fault}"):
        Keeper(config, SOURCE, None, Exporter("m", "1", Output().blocks.append))


def test_metadata_says_what_is_kept_and_where(tmp_path: Path) -> None:
    """All of it, without the secrets of a URL."""
    asked = {"to": "memory://key:word@store/x", "picture": "none", "max_days": 7}
    told = Keeper(Config.from_mapping({"evidence": asked}), SOURCE, None, Exporter("m", "1", Output().blocks.append)).describe()
    assert (told["kept"], told["to"], told["picture"], told["max_days"], told["sample"]) == (
        True,
        "memory://store/x",
        "none",
        7,
        60,
    )


def read(text: str, tmp_path: Path) -> Settings:
    """A server's configuration."""
    (tmp_path / "config.properties").write_text(text)
    return Settings.read(tmp_path / "config.properties")


def test_serve_tells_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables beat the file; a folder is told in full, for workers run elsewhere."""
    for name in (KEEP, KEEP_AT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settings = read("camserve_evidence=TRUE\ncamserve_evidence_to=kept\n", tmp_path)
    assert compose_evidence(settings) == {KEEP: "true", KEEP_AT: str(tmp_path / "kept")}
    assert compose_evidence(read("", tmp_path)) == {}
    monkeypatch.setenv(KEEP, "false")
    monkeypatch.setenv(KEEP_AT, "s3://b/c")
    assert compose_evidence(settings) == {KEEP: "false", KEEP_AT: "s3://b/c"}


@pytest.mark.parametrize("line", ["camserve_evidence=on", "camserve_evidence_to=s3://"])
def test_serve_refuses_what_it_cannot_tell(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any worker starts."""
    for name in (KEEP, KEEP_AT):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServeError, match=r"camserve_evidence\w*: expected"):
        compose_evidence(read(line, tmp_path))


def test_a_server_of_an_older_release_still_watches() -> None:
    """It does not declare evidence's metrics, and drops them; the others are exported all the same."""
    names = [metric.name for metric in METRICS]
    assert undeclared({"all": names}) == []
    assert undeclared({"all": [name for name in names if "evidence" not in name]}) == []
    assert undeclared({"all": [name for name in names if name != "camserve_maps_total"]}) == ["camserve_maps_total"]
    assert METRICS_YAML.is_file()
