"""What a server says of evidence to the workers of all archives: that none is kept, that it is, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from camserve.core.config import Config
from camserve.core.config.watching import PLACE
from camserve.core.errors import ConfigError
from camserve.core.text import show

KEEP, KEEP_AT = "CAMSERVE_EVIDENCE", "CAMSERVE_EVIDENCE_TO"
"""The variables by which a server tells its workers to keep evidence or not (`true`, `false`), and where."""


def overrule_evidence(config: Config, environment: Mapping[str, str]) -> Config:
    """Take what the server says of evidence, in `KEEP` and `KEEP_AT`: it forces or forbids to keep any, and says where.

    Raises:
        ConfigError: a variable has another value than it may have.
    """
    switch = read_switch(KEEP, environment.get(KEEP), ConfigError)
    if switch is not None:
        keeps = switch and (config.evidence or True)
        config = replace(config, evidence=keeps, overruled=config.overruled | {"evidence"})
    place = environment.get(KEEP_AT, "").strip()
    if not place or config.keeping is None:
        return config
    try:
        return replace(config, evidence={**vars(config.keeping), "to": PLACE.read(place)})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{KEEP_AT}: expected {PLACE.accepts}, got {show(place)}") from error


def read_switch(name: str, text: str | None, fault: Callable[[str], Exception]) -> bool | None:
    """Read `true`, `false`, or nothing (None) of a server's setting.

    Raises:
        Exception: what `fault` makes of the message, for anything else.
    """
    word = (text or "").strip().lower()
    if word not in ("", "true", "false"):
        raise fault(f"{name}: expected true, false or nothing, got {text!r}")
    return None if not word else word == "true"


def tell_why_not(config: Config) -> str:
    """Say why no evidence is kept, where none is."""
    if config.keeping is not None:
        return "nothing is monitored, and what is not watched cannot be kept"
    return "the server forbids it (camserve_evidence)" if "evidence" in config.overruled else "the archive does not ask for it"
