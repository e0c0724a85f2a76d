"""Looks at a running server for the classic mistakes of a deployment, and says how to mend each.

Exit status 0 where nothing is wrong (advice does not count), 1 where something is, 2 where the server cannot be asked.
"""

from __future__ import annotations

import argparse
import io
import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
from PIL import Image
from requests.auth import AuthBase
from rich.console import Console
from rich.markup import escape

from camserve.monitoring.metrics import METRICS
from camserve.tools.client.token import REFUSED, WANTED, open_token_file
from camserve.tools.console import ToolError, command_of, fail
from camserve.tools.serving.configuration.addresses import is_loopback
from camserve.tools.watching.checkup import Finding, of_version, undeclared

TIMEOUT = 30.0
"""Seconds that one question may take."""


@dataclass(frozen=True)
class Addresses:
    """The server's three addresses."""

    inference: str
    management: str
    metrics: str

    @classmethod
    def of(cls, url: str, management: str | None, metrics: str | None) -> Addresses:
        """By TorchServe's habit management and metrics are on the two ports above."""
        parts = urlsplit(_whole(url))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        root = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname

        def beside(step: int) -> str:
            return urlunsplit((parts.scheme, f"{root}:{port + step}", "", "", ""))

        return cls(beside(0), _whole(management or beside(1)), _whole(metrics or beside(2)))


def _whole(url: str) -> str:
    """The address with its scheme, and without a slash at its end."""
    whole = (url if "://" in url else f"http://{url}").rstrip("/")
    if urlsplit(whole).hostname is None:
        raise ToolError(f"expected a server's URL such as http://127.0.0.1:8080, got {url}")
    return whole


class _Authorised(AuthBase):
    """Sends each address the token that it wants."""

    def __init__(self, addresses: Addresses, tokens: Mapping[str, str]) -> None:
        self._management = f"{addresses.management}/".lower()
        self._tokens = tokens

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        name = "management" if str(request.url).lower().startswith(self._management) else "inference"
        if self._tokens:
            request.headers["Authorization"] = f"Bearer {self._tokens[name]}"
        return request


Get = Callable[[str], requests.Response]


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the server that `argv` names; the exit status."""
    options = parser().parse_args(argv)
    try:
        addresses = Addresses.of(options.url, options.management, options.metrics)
        findings = list(examine(addresses, _tokens(options.token_file)))
    except (ToolError, OSError, ValueError) as error:
        fail(error)
        return 2
    _say(findings)
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog=command_of("doctor"), description=__doc__, allow_abbrev=False)
    made.add_argument("url", metavar="URL", help="the server's inference address, http://127.0.0.1:8080")
    made.add_argument("--management", metavar="URL", help="its management address (the port above)")
    made.add_argument("--metrics", metavar="URL", help="its metrics address (two ports above)")
    made.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token: TorchServe's key_file.json")
    return made


def _tokens(path: Path | None) -> dict[str, str]:
    """The tokens by TorchServe's names `inference` and `management`; the file's own word for both where it holds but one."""
    token = open_token_file(path)
    if path is None or token is None:
        return {}
    text = path.read_text("utf-8").strip()
    management = json.loads(text).get("management", {}).get("key", "") if text.startswith("{") else token()
    return {"inference": token(), "management": management}


def examine(addresses: Addresses, tokens: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that can be found from outside, the server first, then each model.

    Raises:
        ToolError: nothing answers at the inference address, or it wants a token, or another one.
    """
    with requests.Session() as session:
        session.auth = _Authorised(addresses, tokens)

        def get(url: str) -> requests.Response:
            return session.get(url, timeout=TIMEOUT)

        yield from _examine_ping(addresses, get, bool(tokens))

        def get_as_stranger(url: str) -> requests.Response:
            return session.get(url, timeout=TIMEOUT, auth=lambda request: request)

        url = f"{addresses.management}/models?limit=1000"
        listed = _asked(get, url)
        strangers = _asked(get_as_stranger, url) if tokens and listed is not None else listed
        yield from _examine_exposure(addresses, strangers, bool(tokens))
        exported, findings = _examine_metrics(addresses, get)
        yield from findings
        names = _models(addresses, listed, bool(tokens))
        if isinstance(names, Finding):
            yield names
            return
        if not names:
            yield Finding("wrong", "the server has no model", "start it with --models; its log says which archive failed")
        for name in names:
            yield from _examine_model(name, addresses, session, exported)


def _asked(get: Get, url: str) -> requests.Response | None:
    """The answer, if one comes."""
    try:
        return get(url)
    except requests.RequestException:
        return None


def _models(addresses: Addresses, listed: requests.Response | None, token: bool) -> list[str] | Finding:
    """The models' names by the management address's answer, or why they are not known."""
    what, mend = "does not answer", "run this beside the server, or give --management"
    if listed is not None and _refuses(listed):
        what = "refuses the token" if token else "wants a token"
        mend = "give --token-file key_file.json: the management address has a token of its own, which expires too"
    names = _names(listed)
    if names is not None:
        return names
    return Finding("advice", f"the management address {addresses.management} {what}, so the models cannot be looked at", mend)


def _names(listed: requests.Response | None) -> list[str] | None:
    """The models' names in TorchServe's list of them; None where this is no such list."""
    try:
        return [each["modelName"] for each in listed.json()["models"]] if listed is not None else None
    except (ValueError, KeyError, TypeError):
        return None


def _refuses(answer: requests.Response) -> bool:
    """Whether an answer is about the token: TorchServe's, or that of a proxy before it."""
    return answer.status_code in (401, 403) or _wants_token(answer)


def _wants_token(answer: requests.Response) -> bool:
    """Whether TorchServe itself refuses the token."""
    return answer.status_code == 400 and "Token" in answer.text


def _examine_ping(addresses: Addresses, get: Get, token: bool) -> Iterator[Finding]:
    try:
        answer = get(f"{addresses.inference}/ping")
    except requests.RequestException as error:
        raise ToolError(f"nothing answers at {addresses.inference}: {type(error).__name__}") from None
    if _refuses(answer) and token:
        raise ToolError(REFUSED)
    if _refuses(answer):
        raise ToolError(f"{WANTED}; probes cannot send one: behind an authenticating proxy set disable_token_authorization=true")
    if answer.status_code != 200:
        yield Finding("wrong", f"/ping answers {answer.status_code}: a model has too few healthy workers", "its log says why")
    else:
        yield Finding("ok", f"{addresses.inference} answers")


def _examine_exposure(addresses: Addresses, listed: requests.Response | None, token: bool) -> Iterator[Finding]:
    """`listed` is what the management address answers without a token.

    As `serve` has it, TorchServe itself should not answer there beyond loopback: not on a private network, and not with a token,
    which travels in the clear. A proxy before it that asks who it is (401, 403) may.
    """
    wants_token = listed is not None and _wants_token(listed)
    if (wants_token or _names(listed) is not None) and not _is_here(addresses.management):
        who = "whoever reaches it and has its token" if wants_token else "whoever reaches it"
        yield Finding(
            "wrong",
            f"the management address {addresses.management} is not loopback: {who} takes models out of service",
            "management_address=http://127.0.0.1:8081",
        )
    if _is_public(addresses.inference) and not token:
        yield Finding(
            "advice",
            f"{addresses.inference} answers without a token",
            "put a proxy in front that authenticates, or disable_token_authorization=false",
        )


def _is_here(url: str) -> bool:
    """Whether it is loopback that is asked; 0.0.0.0 is too, where one connects to it."""
    host = urlsplit(url).hostname or ""
    return host in ("0.0.0.0", "::") or is_loopback(host)  # noqa: S104 not to bind it


def _is_public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return host != "localhost" and "." in host


def _examine_metrics(addresses: Addresses, get: Get) -> tuple[str, list[Finding]]:
    """The exposition's text, and what is to be said of it."""
    try:
        answer = get(f"{addresses.metrics}/metrics")
        answer.raise_for_status()
    except requests.RequestException:
        mend = "give --metrics, or open it to Prometheus"
        return "", [Finding("advice", f"{addresses.metrics}/metrics does not answer", mend)]
    text, lacking = answer.text, undeclared(answer.text)
    if not text.strip():
        mend = "metrics_mode=prometheus in config.properties (not log, its default)"
        return text, [Finding("wrong", "/metrics is empty", mend)]
    if lacking:
        mend = "metrics_mode=prometheus and metrics_config=.../camserve/metrics.yaml, of the archives' release"
        what = "has nothing of camserve's" if len(lacking) == len(METRICS) else f"lacks {', '.join(lacking)}"
        why = "the server's metrics_config does not declare all metrics of this release, and without one of them none is written"
        return text, [Finding("wrong", f"/metrics {what}: {why}", f"{mend} in config.properties")]
    return text, [Finding("ok", f"{addresses.metrics}/metrics exports camserve's metrics")]


def _examine_model(name: str, addresses: Addresses, session: requests.Session, exported: str) -> Iterator[Finding]:
    url = f"{addresses.management}/models/{name}"
    for version in session.get(f"{url}/all", timeout=TIMEOUT).json():
        number = version["modelVersion"]  # of all versions at once, TorchServe leaves out what the handlers say
        answer = session.get(f"{url}/{number}?customized=true", timeout=TIMEOUT)
        yield from of_version(f"{name} {number}", answer.json()[0] if answer.status_code == 200 else version, exported)
    yield _examine_answer(name, addresses, session)


def _examine_answer(name: str, addresses: Addresses, session: requests.Session) -> Finding:
    """One real explanation of a small grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    try:
        answer = session.put(f"{addresses.inference}/explanations/{name}", data=file.getvalue(), timeout=TIMEOUT)
        whole = answer.status_code == 200 and "explanations" in answer.json()
    except (requests.RequestException, ValueError):
        return Finding("wrong", f"{name}: does not answer /explanations with JSON", "the log says why")
    if not whole:
        return Finding("wrong", f"{name}: /explanations answers {answer.status_code}: {answer.text[:200]}", "the log says why")
    return Finding("ok", f"{name}: explains a picture")


def _say(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": "[green]ok     [/]", "advice": "[yellow]advice [/]", "wrong": "[red]wrong  [/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]} {escape(finding.what)}")
        if finding.mend:
            console.print(f"        mend: {escape(finding.mend)}", style="dim")


if __name__ == "__main__":
    raise SystemExit(main())
