"""Whom a server's settings let in, and what its memory holds: what is refused, and what is warned of."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from tests.support.build import mar

from camserve.tools.commands import serve
from camserve.tools.commands.serve import main
from camserve.tools.serving.configuration import advice
from camserve.tools.serving.configuration.addresses import DEFAULTS, Addresses, Settings, is_loopback
from camserve.tools.serving.configuration.java import compose_command, find_java, read_max_heap
from camserve.tools.serving.process.errors import ServeError

ROOT = Path(__file__).resolve().parents[3]
CONFIGURATIONS = ("config.properties", "deploy/torchserve/container.properties", "deploy/torchserve/cluster.properties")


def read(tmp_path: Path, *lines: str) -> Settings:
    """A configuration of these lines."""
    path = tmp_path / "config.properties"
    path.write_text("\n".join(lines))
    return Settings.read(path)


OURS = ("127.0.0.1", "127.8.8.8", "::1", "localhost")
OTHERS = ("0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid", "x" * 300)


@pytest.mark.parametrize(("host", "expected"), [*((each, True) for each in OURS), *((each, False) for each in OTHERS)])
def test_hosts_that_only_this_machine_reaches(host: str, expected: bool) -> None:
    """By what a name means; one that means nothing is not trusted."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "line", ["management_address=http://0.0.0.0:8081", "management_address=http://[::]:8081", "grpc_management_address=0.0.0.0"]
)
def test_management_on_a_public_address_is_refused(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """HTTP's and gRPC's, before anything is started, unless a flag says that it is meant."""
    settings = read(tmp_path, line)
    key = line.partition("=")[0]
    with pytest.raises(ServeError, match=rf'^{key} is ".*", which is not loopback: .* --public-management$'):
        Addresses.choose(settings, 0)
    assert Addresses.choose(settings, 0, public_management=True)
    mar(tmp_path, "small")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # where nothing could be started
        arguments = ["--model-store", str(tmp_path), "--config", str(tmp_path / "config.properties")]
        for flag, error in (([], f"error: {key} is "), (["--public-management"], "error: port ")):
            assert main([*arguments, *flag, "--log-dir", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 1
            assert error in capsys.readouterr().err


def test_flags_reach_the_server() -> None:
    """As they are given, and as the help says where they are not."""
    given = ["--public-management", "--max-silence", "5", "--max-outage", "7"]
    found = [serve._server(serve.parser().parse_args(arguments)) for arguments in (given, [])]
    servers = [each for each in found if isinstance(each, serve.Server)]
    assert [(each._public_management, each._max_silence, each._max_outage) for each in servers] == [
        (True, 5, 7),
        (False, 600, None),
    ]


@pytest.mark.parametrize("path", CONFIGURATIONS)
def test_the_settings_that_are_shipped_need_no_excuse(path: str) -> None:
    """The image's and the cluster's settings start as they are, and nothing is warned of."""
    settings = Settings.read(ROOT / path)
    addresses = Addresses.choose(settings, 0)
    assert advice.warn_of_exposure(settings, addresses) == []
    assert is_loopback(addresses.http[1][1])
    assert int(settings.values["job_queue_size"]) == 100


def test_an_open_server_without_tokens_is_warned_of(tmp_path: Path) -> None:
    """HTTP's address or gRPC's, unless tokens are wanted, or the settings say that a proxy in front asks who it is."""
    open_to_all = "inference_address=http://0.0.0.0:8080"
    off = "disable_token_authorization=true"
    for lines, words in (
        ([open_to_all, off], ["0.0.0.0"]),
        ([open_to_all, "grpc_inference_address=::", off], ["0.0.0.0 or ::"]),
        (["grpc_inference_address=0.0.0.0", off], ["0.0.0.0"]),
        ([open_to_all, off, "camserve_proxy_authenticates=false"], ["camserve_proxy_authenticates=true"]),
        ([open_to_all, off, "camserve_proxy_authenticates=true"], []),
        ([open_to_all, "disable_token_authorization=false"], []),
        ([open_to_all], []),
        ([off], []),
    ):
        settings = read(tmp_path, *lines)
        found = advice.warn_of_exposure(settings, Addresses.choose(settings, 0))
        assert len(found) == len(words)
        assert all(word in text for word, text in zip(words, found, strict=True))


def test_our_own_keys_are_not_torchserves(tmp_path: Path) -> None:
    """They are kept apart; both stay in the text, which TorchServe reads."""
    settings = read(tmp_path, "camserve_proxy_authenticates=true", "a=1")
    assert dict(settings.values) == {"a": "1"}
    assert settings.is_set("camserve_proxy_authenticates")
    assert not settings.is_set("a")
    assert "camserve_proxy_authenticates=true" in settings.text


def model(name: str, waiting: int, room: int) -> dict[str, Any]:
    """A version whose queue holds some requests and has room for others."""
    return {"modelName": name, "jobQueueStatus": {"pendingRequests": waiting, "remainingCapacity": room}}


def test_queues_that_do_not_fit_are_warned_of() -> None:
    """All queues together, by photographs; what the image has for one model fits, what archives brought before does not."""
    heap = 2**30
    assert advice.warn_of_memory([model("cat", 20, 80)], heap) == []
    (text,) = advice.warn_of_memory([model("cat", 0, 1000)], heap)
    assert "1000 requests may wait" in text
    assert "need 6.2 GB of Java's heap, which ends at 1.1 GB" in text
    (text,) = advice.warn_of_memory([model("cat", 0, 50), model("dog", 40, 60), model("dog", 0, 50)], heap)
    assert text.startswith('200 requests may wait, 100 of them for "dog". ')
    assert advice.warn_of_memory([model("cat", 0, 1000)], 0) == []
    assert advice.warn_of_memory([], heap) == []


def test_without_a_configuration_as_with_it() -> None:
    """The same queue; TorchServe's own is as long."""
    assert "job_queue_size=100\n" in DEFAULTS


def test_java_tells_its_heap(tmp_path: Path) -> None:
    """With the options with which it is started: those of `vmargs` count."""
    config = tmp_path / "config.properties"
    command = [
        compose_command(
            find_java(), config=config, vmargs=vmargs, folder=tmp_path, log_config=config, store=tmp_path, models=["m.mar"]
        )
        for vmargs in (["-Xmx300m"], [])
    ]
    assert read_max_heap(command[0]) == 300 * 2**20
    assert read_max_heap(command[1]) > 0
    assert read_max_heap(["false", "-cp"]) == 0
