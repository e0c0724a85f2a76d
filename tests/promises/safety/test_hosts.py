"""By which names a server may be asked: pages of other sites cannot pose as its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.tools.serving.doubles import settings

from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.core.labels import Labels
from camserve.core.messages import Call, Request
from camserve.core.served import Served
from camserve.protocol.accept import allow_hosts, check_host
from camserve.protocol.parser import Parser
from camserve.tools.serving.configuration.addresses import Addresses
from camserve.tools.serving.configuration.environment import HOSTS, compose_environment
from camserve.tools.serving.process.errors import ServeError

OWN = (
    *("127.0.0.1:8080", "localhost", "LOCALHOST:8080", "localhost.:80", "[::1]:8080", "[::1]", "my.localhost:1", "10.0.0.7"),
    *("127.1:8080", "0x7f000001", "2130706433", "host.docker.internal:8080", "vision.example.com", "a.b.example.org:443"),
)
FOREIGN = (
    *("evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "example.org", "vision.example.com.evil.example"),
    *("evillocalhost", "", ":8080", "[evil.example]", "127.0.0.1@evil.example", "1.evil", "a.b.example.org.evil.example"),
)
ALLOWED = ("vision.example.com", ".example.org")


@pytest.mark.parametrize("name", OWN)
def test_what_names_this_server_passes(name: str) -> None:
    """Addresses, for a rebound name is none; localhost; and what is allowed, whatever the port and the case."""
    check_host({"host": name}, ALLOWED)


@pytest.mark.parametrize("name", FOREIGN)
def test_another_name_is_refused(name: str) -> None:
    """The message says how to allow it."""
    with pytest.raises(RequestError, match="camserve_allowed_hosts") as raised:
        check_host({"host": name}, ALLOWED)
    assert (raised.value.status, raised.value.kind) == (403, "HostNotAllowed")
    check_host({"host": name}, None)
    check_host({"host": name}, ("*",))


def test_what_comes_from_no_browser_names_no_host() -> None:
    """gRPC has no such header."""
    check_host({}, ())


@pytest.mark.parametrize("explain", [True, False])
@pytest.mark.parametrize("fields", [{"body": b"x"}, {"data": b"x"}, {}, {"body": b'{"instances": [{"data": "eA=="}]}'}])
def test_every_route_is_checked(explain: bool, fields: Mapping[str, object]) -> None:
    """Predictions, explanations, the page and KServe's, before anything of the body is read."""
    served = Served(Config(allowed_hosts=()), Labels(2), ("a",))
    with pytest.raises(RequestError, match="host: expected an address"):
        Parser(served).parse(Call(explain, {"host": "evil.example", "accept": "text/html"}, fields))
    if fields.get("body") == b"x":
        call = Call(explain, {"host": "localhost"}, {"body": b"\x89PNG\r\n\x1a\n"})
        assert isinstance(Parser(dataclasses.replace(served)).parse(call), Request)


@pytest.mark.parametrize(
    ("given", "told", "wanted"),
    [
        ({}, None, "localhost"),
        ({"inference_address": "http://localhost:8080"}, None, "localhost"),
        ({"inference_address": "http://0.0.0.0:8080"}, None, None),
        ({"inference_address": "http://0.0.0.0:8080"}, "a.example", "localhost,a.example"),
        ({"camserve_allowed_hosts": "A.example, .b.example"}, "c", "localhost,a.example,.b.example,c"),
        ({"inference_address": "http://0.0.0.0:8080", "camserve_allowed_hosts": "*"}, None, "localhost,*"),
    ],
)
def test_a_loopback_server_knows_its_names_and_others_are_told(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: str | None, wanted: str | None
) -> None:
    """By default nothing is checked where others reach the server: it cannot know what it is called there."""
    monkeypatch.delenv(HOSTS, raising=False)
    if told:
        monkeypatch.setenv(HOSTS, told)
    own = {name: value for name, value in given.items() if name.startswith("camserve_")}
    config = dataclasses.replace(settings(**{name: value for name, value in given.items() if name not in own}), own=own)
    made = compose_environment(config, Addresses.choose(config, 0), [], Path())
    assert made.get(HOSTS) == wanted
    assert allow_hosts(Config(), made.get(HOSTS)).allowed_hosts == (tuple(wanted.split(",")) if wanted else None)


def test_the_archive_s_names_are_added_to() -> None:
    """Both may allow."""
    assert allow_hosts(Config(allowed_hosts=("a",)), "localhost,b").allowed_hosts == ("a", "localhost", "b")
    assert allow_hosts(Config(allowed_hosts=("a",)), None).allowed_hosts == ("a",)


@pytest.mark.parametrize("names", ["http://a.example", "a.example:80", "a b", "*.example"])
def test_what_is_no_name_is_refused(names: str) -> None:
    """Where it stands, before anything is served."""
    with pytest.raises(ConfigError, match="allowed_hosts: expected names such as"):
        Config.from_mapping({"allowed_hosts": [names]})
    with pytest.raises(ConfigError, match="CAMSERVE_ALLOWED_HOSTS"):
        allow_hosts(Config(), names)
    config = dataclasses.replace(settings(), own={"camserve_allowed_hosts": names})
    with pytest.raises(ServeError, match="camserve_allowed_hosts"):
        compose_environment(config, Addresses.choose(config, 0), [], Path())
