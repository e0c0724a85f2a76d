"""`scripts/serve.py --log-format json`: whatever is said, by whomever, is one JSON object on one line."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.tools.serving.test_serve import Command, write_archive

from camserve.tools.commands.serve import main
from camserve.tools.serving.process import voice

OF_EACH_BATCH = ("Looping backend response", "Backend response time", "Backend received inference", "Sending response for jobId")
"""Lines of TorchServe's that are told by one of the access log already, or are the size of four of it."""


def records(text: str) -> list[dict[str, Any]]:
    """The objects of a log, each of which has what every record has."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in found)
    assert all(record["time"].endswith("Z") for record in found)
    return found


@pytest.mark.live
def test_a_run_from_start_to_stop(tmp_path: Path) -> None:
    """TorchServe's lines, its workers', what Java prints past its log, and serve's own, in order on standard output."""
    (tmp_path / "store").mkdir()
    write_archive(tmp_path / "store", "quick")
    with Command(tmp_path / "store", "--models", "quick", "--log-format", "json") as command:
        text = command.wait_for(command.output, '"message": "ready"')
        (url,) = (record["url"] for record in records(text) if "url" in record)
        for path in ("/predictions/quick", "/explanations/quick?token=SECRET", "/ping?token=SECRET"):
            assert requests.post(f"{url}{path}", data=b"x", timeout=60).status_code == 200
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20) == 0
        found = records(command.output.read_text())
        assert command.errors.read_text() == ""

    assert {"MODEL_LOG", "camserve.serve", "ACCESS_LOG"} <= {record["logger"] for record in found}
    asked = [record["message"].split('"')[1] for record in found if record["logger"] == "ACCESS_LOG"]
    assert [each for each in asked if "/models" not in each] == [
        "POST /predictions/quick HTTP/1.1",
        "POST /explanations/quick?... HTTP/1.1",
        "POST /ping?... HTTP/1.1",
    ]
    assert not [each for each in asked if each.startswith(("GET /models?limit=1000", "GET /models?...", "GET /models/quick/all"))]
    assert not [line for line in found if any(words in line["message"] for words in ("SECRET", *OF_EACH_BATCH))]
    assert found[0]["message"].startswith("starting TorchServe with quick")
    assert found[-1]["message"] == "stopped"


def test_an_error_is_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before Java starts; the exit status stays."""
    (tmp_path / "store").mkdir()
    assert main(["--model-store", str(tmp_path / "store"), "--log-format", "json"]) == 1

    (record,) = records(capsys.readouterr().out)
    assert (record["level"], record["logger"]) == ("ERROR", "camserve.serve")
    assert "holds no archive" in record["message"]


@pytest.mark.parametrize("line", ["plain", "", '{"half": ', "[1]", 'say "no"\ttwice', "\x1b[31mred\udcff"])
def test_a_line_that_is_no_object_is_wrapped(line: str) -> None:
    """Java's warnings and a worker's bare output; an object stays as it is."""
    (record,) = records(voice.JsonVoice().line(line))
    assert (record["message"], record["logger"]) == (line, "stdout")
    assert voice.JsonVoice().line('{"a": 1}') == '{"a": 1}'
