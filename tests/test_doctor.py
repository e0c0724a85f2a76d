"""The doctor on live servers: one in order, and one with the classic mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.build import MODEL, weights

from camserve.tools import doctor, package
from camserve.tools.doctor import Addresses, examine
from camserve.tools.serve import Server


def of(server: Server) -> Addresses:
    """The server's addresses."""
    return Addresses(server.url, server.management_url, server.metrics_url)


@pytest.mark.live
def test_a_server_in_order_has_no_mistakes(live: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model answers; the only advice is the reference that these archives lack."""
    arguments = [live.url, "--management", live.management_url, "--metrics", live.metrics_url]

    assert doctor.main(arguments) == 0
    said = capsys.readouterr().out
    assert "efficientnet_lite0: explains a picture" in said
    assert "exports camserve's metrics" in said
    assert "no reference, so drift is not watched" in said
    assert "scripts/reference.py --archive" in said


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[Server]:
    """A server whose metrics go to the log, with a model whose batches wait long, and one that is not batched."""
    import torch

    model, state = tmp_path / "bright.py", tmp_path / "weights.pth"
    model.write_text(MODEL.replace("CLASSES", "3").replace("FAULT", "pass"))
    torch.save(weights(), state)
    common = [
        "--model-file",
        str(model),
        "--weights",
        str(state),
        "--export-path",
        str(tmp_path),
        "--resize",
        "64",
        "--crop",
        "64",
    ]
    assert package.main([*common, "--name", "slow", "--max-batch-delay", "900"]) == 0
    assert package.main([*common, "--name", "single", "--batch-size", "1"]) == 0
    config = tmp_path / "config.properties"
    config.write_text("disable_token_authorization=true\nmetrics_mode=log\n")
    with Server(tmp_path, config=config, port=0) as server:
        yield server


@pytest.mark.live
def test_the_classic_mistakes_are_found_with_their_remedies(careless: Server) -> None:
    """Metrics that go to the log, a long batch delay, no batching; each says what to write where."""
    findings = {finding.what: finding for finding in examine(of(careless), {})}

    def one(words: str) -> doctor.Finding:
        (found,) = [finding for what, finding in findings.items() if words in what]
        return found

    assert (one("/metrics is empty").level, "metrics_mode=prometheus" in one("/metrics is empty").mend) == ("wrong", True)
    assert "maxBatchDelay" in one("slow 1.0: a lone request waits 900 ms").mend
    assert "--batch-size" in one("single 1.0: batchSize is 1").mend


def test_nobody_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2; a port that nobody listens on."""
    assert doctor.main(["http://127.0.0.1:9"]) == 2
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:9000", Addresses("http://127.0.0.1:9000", "http://127.0.0.1:9001", "http://127.0.0.1:9002")),
        ("models.example", Addresses("http://models.example:80", "http://models.example:81", "http://models.example:82")),
        ("https://[::1]:8443/x", Addresses("https://[::1]:8443", "https://[::1]:8444", "https://[::1]:8445")),
    ],
)
def test_the_other_addresses_follow_torchserves_habit(url: str, wanted: Addresses) -> None:
    """Management one port above, metrics two."""
    assert Addresses.of(url, None, None) == wanted


@pytest.mark.parametrize(
    ("url", "public"), [("http://127.0.0.1:1", False), ("http://10.1.2.3:1", False), ("http://8.8.8.8:1", True)]
)
def test_a_public_address_is_told_from_a_private_one(url: str, public: bool) -> None:
    """Loopback and private networks are nobody's business."""
    assert doctor._is_public(url) is public
