"""Why a model does not load, as the log tells."""

from __future__ import annotations

import json

from camserve.tools.serving.health import faults

IMPORT_ERROR = """\
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG -   File "x.py", line 1, in <module>
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - RuntimeError: Error(s) in loading state_dict for Net:
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - \tMissing key(s) in state_dict: "a".
2026-01-01T00:00:00,000 [INFO ] epollEventLoopGroup-5-1 org.pytorch.serve.wlm.WorkerThread - 9000 Worker disconnected.
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - ModuleNotFoundError: No module named 'captum'
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - 
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - During handling of the above exception, another exception occurred:
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - 
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG -   File "y.py", line 1, in <module>
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - ModuleNotFoundError: No module named 'ts.torch_handler.h'
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG -     raise RuntimeError("{} - {}".format(code, result))
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - RuntimeError: 500 - Unknown exception
""".splitlines()  # noqa: W291  # noqa: W291


def test_the_true_reason_is_found() -> None:
    """Neither the retry among TorchServe's handlers nor its code 500 hides the cause, and models are told apart."""
    assert faults.find_reason(IMPORT_ERROR, "m") == "ModuleNotFoundError: No module named 'captum'"
    expected = 'RuntimeError: Error(s) in loading state_dict for Net: Missing key(s) in state_dict: "a".'
    assert faults.find_reason(IMPORT_ERROR, "n") == expected
    assert faults.find_reason(IMPORT_ERROR, "other") is None


def test_reason_in_a_log_of_another_form() -> None:
    """JSON lines and bare lines are understood too, and camserve's own errors are told without their class."""
    words = ["Traceback (most recent call last):", "  File ...", "camserve.core.errors.ConfigError: explain.resize: no"]
    assert faults.find_reason(words, "m") == "explain.resize: no"
    records = [json.dumps({"thread": "W-9000-m_1.0-stdout", "message": word}) for word in words]
    assert faults.find_reason(records, "m") == "explain.resize: no"
    assert faults.find_reason(records, "n") is None


def test_workers_that_begin_late_are_found() -> None:
    """Each of them, with its model; no other way to end is one."""
    error = "Backend worker error org.pytorch.serve.wlm.WorkerInitializationException: Backend worker startup time out."
    record = {"thread": "W-9001-n_1.0", "message": error + "\\n\tat org.pytorch.serve"}
    line = f"2026-01-01T00:00:00,000 [ERROR] W-9000-my_model_1.0 org.pytorch.serve.wlm.WorkerThread - {error}"
    assert faults.find_late_workers([line, *IMPORT_ERROR, json.dumps(record), line]) == ["my_model", "n", "my_model"]
    assert faults.find_late_workers(IMPORT_ERROR) == []
