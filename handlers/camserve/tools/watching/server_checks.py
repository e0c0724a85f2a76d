"""Checks a running server from outside: its addresses, tokens and metrics, and each of its models."""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

import requests
from PIL import Image

from camserve.monitoring.metrics import EVIDENCE, METRICS
from camserve.tools.client.token import REFUSED, WANTED
from camserve.tools.console import ToolError
from camserve.tools.serving.configuration.addresses import is_loopback
from camserve.tools.watching.endpoints import EndpointAuth, Endpoints
from camserve.tools.watching.finding import Finding
from camserve.tools.watching.version_checks import check_version, undeclared

TIMEOUT = 30.0
"""Seconds that one question may take."""

Get = Callable[[str], requests.Response]


def check_server(endpoints: Endpoints, tokens: Mapping[str, str]) -> Iterator[Finding]:
    """Checks all that can be seen from outside, the server first, then each model.

    Args:
        endpoints: the server's endpoints.
        tokens: by TorchServe's names, `inference` and `management`; none: it wants none.

    Raises:
        ToolError: nothing answers at the inference address, or it wants a token, or another one.
    """
    with requests.Session() as session:
        session.auth = EndpointAuth(endpoints, tokens)

        def get(url: str) -> requests.Response:
            return session.get(url, timeout=TIMEOUT)

        yield from _check_ping(endpoints, get, bool(tokens))

        def get_as_stranger(url: str) -> requests.Response:
            return session.get(url, timeout=TIMEOUT, auth=lambda request: request)

        url = f"{endpoints.management}/models?limit=1000"
        listed = _ask(get, url)
        strangers = _ask(get_as_stranger, url) if tokens and listed is not None else listed
        yield from _check_exposure(endpoints, strangers, bool(tokens))
        exposition, findings = _check_metrics(endpoints, get)
        yield from findings
        names = _models(endpoints, listed, bool(tokens))
        if isinstance(names, Finding):
            yield names
            return
        if not names:
            yield Finding("wrong", "the server has no model", "start it with --models; its log says which archive failed")
        for name in names:
            yield from _check_model(name, endpoints, session, exposition)


def _ask(get: Get, url: str) -> requests.Response | None:
    """Returns the answer; None where there is no connection."""
    try:
        return get(url)
    except requests.RequestException:
        return None


def _models(endpoints: Endpoints, listed: requests.Response | None, token: bool) -> list[str] | Finding:
    """Reads the models' names from the management address's answer, or says why they are not known."""
    what, remedy = "does not answer", "run this beside the server, or give --management"
    if listed is not None and _refuses(listed):
        what = "refuses the token" if token else "wants a token"
        remedy = "give --token-file key_file.json: the management address has a token of its own, which expires too"
    names = _names(listed)
    if names is not None:
        return names
    return Finding("advice", f"the management address {endpoints.management} {what}, so the models cannot be looked at", remedy)


def _names(listed: requests.Response | None) -> list[str] | None:
    """Reads the models' names from TorchServe's list of models; None where this is no such list."""
    try:
        return [each["modelName"] for each in listed.json()["models"]] if listed is not None else None
    except (ValueError, KeyError, TypeError):
        return None


def _refuses(answer: requests.Response) -> bool:
    """Tells whether an answer refuses the token: TorchServe's, or that of a proxy before it."""
    return answer.status_code in (401, 403) or _wants_token(answer)


def _wants_token(answer: requests.Response) -> bool:
    """Tells whether TorchServe itself refuses the token."""
    return answer.status_code == 400 and "Token" in answer.text


def _check_ping(endpoints: Endpoints, get: Get, token: bool) -> Iterator[Finding]:
    try:
        answer = get(f"{endpoints.inference}/ping")
    except requests.RequestException as error:
        raise ToolError(f"nothing answers at {endpoints.inference}: {type(error).__name__}") from None
    if _refuses(answer) and token:
        raise ToolError(REFUSED)
    if _refuses(answer):
        raise ToolError(f"{WANTED}; probes cannot send one: behind an authenticating proxy set disable_token_authorization=true")
    if answer.status_code != 200:
        yield Finding("wrong", f"/ping answers {answer.status_code}: a model has too few healthy workers", "its log says why")
    else:
        yield Finding("ok", f"{endpoints.inference} answers")


def _check_exposure(endpoints: Endpoints, listed: requests.Response | None, token: bool) -> Iterator[Finding]:
    """Checks that the management address is not open to others, and that a public inference address wants a token.

    Beyond loopback TorchServe itself should not answer at the management address, not even on a private network, or with a
    token, which travels in the clear. An authenticating proxy before it (401, 403) may.

    Args:
        endpoints: the server's endpoints.
        listed: what the management address answers without a token.
        token: whether a token was given.
    """
    wants_token = listed is not None and _wants_token(listed)
    if (wants_token or _names(listed) is not None) and not _is_here(endpoints.management):
        who = "whoever reaches it and has its token" if wants_token else "whoever reaches it"
        yield Finding(
            "wrong",
            f"the management address {endpoints.management} is not loopback: {who} takes models out of service",
            "management_address=http://127.0.0.1:8081",
        )
    if _is_public(endpoints.inference) and not token:
        yield Finding(
            "advice",
            f"{endpoints.inference} answers without a token",
            "put a proxy in front that authenticates, or, with TorchServe, disable_token_authorization=false",
        )


def _is_here(url: str) -> bool:
    """Tells whether an address is loopback; so is 0.0.0.0, where one connects to it."""
    host = urlsplit(url).hostname or ""
    return host in ("0.0.0.0", "::") or is_loopback(host)  # noqa: S104 not to bind it


def _is_public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return host != "localhost" and "." in host


def _check_metrics(endpoints: Endpoints, get: Get) -> tuple[str, list[Finding]]:
    """Returns the text of the metrics address, and what is to be said of it."""
    try:
        answer = get(f"{endpoints.metrics}/metrics")
        answer.raise_for_status()
    except requests.RequestException:
        remedy = "give --metrics, or open it to Prometheus"
        return "", [Finding("advice", f"{endpoints.metrics}/metrics does not answer", remedy)]
    text, lacking = answer.text, undeclared(answer.text)
    if not text.strip():
        remedy = "metrics_mode=prometheus in config.properties (not log, its default)"
        return text, [Finding("wrong", "/metrics is empty", remedy)]
    if lacking:
        remedy = "metrics_mode=prometheus and metrics_config=.../camserve/metrics.yaml, of the archives' release"
        what = "has nothing of camserve's" if len(lacking) == len(METRICS) - len(EVIDENCE) else f"lacks {', '.join(lacking)}"
        why = "the server's metrics_config does not declare all metrics of this release, and without one of them none is written"
        return text, [Finding("wrong", f"/metrics {what}: {why}", f"{remedy} in config.properties")]
    return text, [Finding("ok", f"{endpoints.metrics}/metrics exports camserve's metrics")]


def _check_model(name: str, endpoints: Endpoints, session: requests.Session, exposition: str) -> Iterator[Finding]:
    url = f"{endpoints.management}/models/{name}"
    for version in session.get(f"{url}/all", timeout=TIMEOUT).json():
        number = version["modelVersion"]  # of all versions at once, TorchServe leaves out what the handlers say
        answer = session.get(f"{url}/{number}?customized=true", timeout=TIMEOUT)
        yield from check_version(f"{name} {number}", answer.json()[0] if answer.status_code == 200 else version, exposition)
    yield _check_answer(name, endpoints, session)


def _check_answer(name: str, endpoints: Endpoints, session: requests.Session) -> Finding:
    """Asks for an explanation of a small grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    try:
        answer = session.put(f"{endpoints.inference}/explanations/{name}", data=file.getvalue(), timeout=TIMEOUT)
        explained = answer.status_code == 200 and "explanations" in answer.json()
    except (requests.RequestException, ValueError):
        return Finding("wrong", f"{name}: does not answer /explanations with JSON", "the log says why")
    if not explained:
        return Finding("wrong", f"{name}: /explanations answers {answer.status_code}: {answer.text[:200]}", "the log says why")
    return Finding("ok", f"{name}: explains a picture")
