"""A server's addresses, and the token that each gets."""

from __future__ import annotations

import pytest
import requests

from camserve.tools.watching.endpoints import EndpointAuth, Endpoints


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:9000", Endpoints("http://127.0.0.1:9000", "http://127.0.0.1:9001", "http://127.0.0.1:9002")),
        ("models.example", Endpoints("http://models.example:80", "http://models.example:81", "http://models.example:82")),
        ("https://[::1]:8443/x", Endpoints("https://[::1]:8443", "https://[::1]:8444", "https://[::1]:8445")),
    ],
)
def test_the_other_addresses_follow_torchserves_habit(url: str, wanted: Endpoints) -> None:
    """Management one port above, metrics two."""
    assert Endpoints.of(url, None, None) == wanted


@pytest.mark.parametrize("management", ["http://h:808", "http://h:808/", "h:808", "H:808//"])
def test_the_management_address_may_end_in_a_slash_and_lack_its_scheme(management: str) -> None:
    """Its URLs have no empty part, and it gets its own token whichever way it is written."""
    addresses = Endpoints.of("http://h:8080", management, "h:8082/")
    auth = EndpointAuth(addresses, {"inference": "i", "management": "m"})
    request = requests.Request("GET", f"{addresses.management}/models", auth=auth).prepare()

    assert addresses.management.lower() == "http://h:808"
    assert addresses.metrics == "http://h:8082"
    assert request.headers["Authorization"] == "Bearer m"
    beside = requests.Request("GET", "http://h:8080/ping", auth=auth).prepare()
    assert beside.headers["Authorization"] == "Bearer i"


def test_a_management_address_below_a_path_gets_its_own_token() -> None:
    """Behind a proxy; requests keeps a path's case."""
    auth = EndpointAuth(Endpoints("http://h", "http://h/Admin", ""), {"inference": "i", "management": "m"})
    asked = [requests.Request("GET", f"http://h/{path}", auth=auth).prepare() for path in ("ping", "Admin/models")]

    assert [each.headers["Authorization"] for each in asked] == ["Bearer i", "Bearer m"]
