"""The configuration file, and which addresses a server takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.support.processes.serving import CONFIG
from tests.tools.serving.doubles import settings

from camserve.tools.commands.serve import main
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.process.errors import ServeError


def test_port_in_use(store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A port that is taken is said plainly, before Java starts; the two ports above it count."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for asked in (port, port - 1, port - 2):
            arguments = ["--model-store", str(store), "--models", "quick", "--port", str(asked), "--log-dir", str(tmp_path)]
            assert main(arguments) == 1
            assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_hosts_of_the_configuration_are_kept() -> None:
    """`--port` changes ports only: a container's 0.0.0.0 stays, management stays on loopback, and clients are told 127.0.0.1."""
    free = Addresses.choose(settings(), 0).http[0][2]
    chosen = Addresses.choose(settings(inference_address="http://0.0.0.0:8080"), free)
    lines = chosen.properties().splitlines()
    assert lines[:3] == [
        f"inference_address=http://0.0.0.0:{free}",
        f"management_address=http://127.0.0.1:{free + 1}",
        f"metrics_address=http://127.0.0.1:{free + 2}",
    ]
    assert chosen.url(0) == f"http://127.0.0.1:{free}"
    own = settings(inference_address=f"http://127.0.0.1:{free}", management_address=f"http://127.0.0.1:{free + 2}")
    kept = Addresses.choose(Settings("", {**own.values, "metrics_address": f"http://127.0.0.1:{free + 1}"}), None)
    assert [port for _, _, port in kept.http] == [free, free + 2, free + 1]


@pytest.mark.parametrize("address", ["unix:/tmp/x", "127.0.0.1:8080", "http://127.0.0.1:none", "http://"])
def test_addresses_that_cannot_be_used(address: str) -> None:
    """An address that is no http URL with a host is refused with the key and the value."""
    with pytest.raises(ServeError, match="management_address="):
        Addresses.choose(settings(management_address=address), 0)
    with pytest.raises(ServeError, match="0 to 65533"):
        Addresses.choose(settings(), 65534)


def test_configuration_is_read_as_java_reads_it(tmp_path: Path) -> None:
    """Comments are skipped, the last of a key counts, and a file that cannot be read is an error."""
    path = tmp_path / "c.properties"
    path.write_text("# a=0\n! a=0\n a = 1 \nb=x=y\na=2\n")
    assert dict(Settings.read(path).values) == {"a": "2", "b": "x=y"}
    with pytest.raises(ServeError, match="No such file"):
        Settings.read(tmp_path / "none")


def test_the_repository_configuration_is_safe() -> None:
    """config.properties listens on loopback only, wants no token, takes no URL and no registration."""
    values = Settings.read(CONFIG).values
    assert all(value.startswith(("http://127.0.0.1:", "127.0.0.1")) for key, value in values.items() if key.endswith("_address"))
    assert len([key for key in values if key.endswith("_address")]) == 5
    expected = {
        "disable_token_authorization": "true",
        "enable_model_api": "false",
        "allowed_urls": "(?!)",
        "metrics_mode": "prometheus",
    }
    assert expected.items() <= values.items()
