"""The log of `serve`: in words or as JSON, and where there is no room for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.support.processes.serving import LINUX, ROOT, Command
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import main
from camserve.tools.serving.process.log import as_json, open_log

OF_EACH_BATCH = ("Looping backend response", "Backend response time", "Backend received inference", "Sending response for jobId")
"""Lines of TorchServe's that are told by one of the access log already, or are the size of four of it."""


def records(text: str) -> list[dict[str, Any]]:
    """The objects of a log, each of which has what every record has."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in found)
    assert all(record["time"].endswith("Z") for record in found)
    return found


@pytest.mark.live
def test_a_run_from_start_to_stop(store: Path, tmp_path: Path) -> None:
    """TorchServe's lines, its workers', what Java prints past its log, and serve's own, in order on standard output. An open server
    without tokens, and a queue that does not fit into Java's memory, are warnings; it serves all the same."""
    config = tmp_path / "open.properties"
    lines = ["inference_address=http://0.0.0.0:8080", "disable_token_authorization=true", "job_queue_size=100", "vmargs=-Xmx300m"]
    config.write_text("\n".join([*lines, "disable_system_metrics=true"]))
    with Command(store, "--models", "quick", "--log-format", "json", "--config", str(config)) as command:
        text = command.wait_for(command.output, '"message": "ready"')
        (url,) = (record["url"] for record in records(text) if "url" in record)
        for path in ("/predictions/quick", "/explanations/quick?token=SECRET", "/ping?token=SECRET"):
            assert requests.post(f"{url}{path}", data=b"x", timeout=HANG).status_code == 200
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(HANG) == 0
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
    exposed, crowded = (line["message"] for line in found if line["logger"] == "camserve.serve" and line["level"] == "WARN")
    assert exposed.startswith("whoever reaches 0.0.0.0 uses the models")
    assert crowded.startswith('100 requests may wait, 100 of them for "quick"')
    assert "need 0.8 GB of Java's heap, which ends at 0.3 GB" in crowded


def test_in_words_warnings_and_errors_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error; what is only noted stands as it is."""
    log = open_log("text")
    log.info("50 % [done]")
    log.warning("careful")
    log.error("no")
    assert capsys.readouterr() == ("", "50 % [done]\nwarning: careful\nerror: no\n")


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
    (record,) = records(as_json(line))
    assert (record["message"], record["logger"]) == (line, "stdout")
    assert as_json('{"a": 1}') == '{"a": 1}'


@LINUX
@pytest.mark.parametrize("place", ["/dev/full", "a pipe whose reader is gone"])
def test_a_log_that_cannot_be_written_stops_nothing(place: str, tmp_path: Path) -> None:
    """All output is read, and kept in memory, where it finds no room; the command that says it ends with its own status."""
    file = tmp_path / "log"
    file.symlink_to("/dev/full")
    program = f"""
        import sys
        from pathlib import Path
        from camserve.tools.serving.process.process import OwnProcess
        from camserve.tools.serving.process.log import open_log_file, write_line
        lines = "for number in range(20_000): print(number)"
        process = OwnProcess([sys.executable, "-c", lines], {{}}, [write_line, open_log_file(Path({str(file)!r}))])
        process._process.wait()
        process.end()
        assert process.lines[-1] == "19999"
        write_line("said")
    """
    if place == "/dev/full":
        output = os.open(place, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {"PYTHONPATH": str(ROOT / "handlers")}
    try:
        ran = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, timeout=HANG, check=False)
    finally:
        os.close(output)
    assert (ran.returncode, ran.stderr) == (0, b"")
