"""Waits that a signal ends."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tests.support.processes.waiting import HANG

from camserve.tools.serving.process.signal_flag import SignalFlag


def test_a_signal_may_come_at_any_moment_of_a_wait() -> None:
    """Its handler runs between any two lines of what the main thread does, here at each of them, and must not wait for that."""
    ends = []

    def wait() -> None:
        flag = SignalFlag()

        def at_each_line(_frame: Any, _event: str, _argument: Any) -> Any:
            sys.settrace(None)
            flag.set()
            sys.settrace(at_each_line)
            return at_each_line

        sys.settrace(at_each_line)
        try:
            ends.append(flag.wait(HANG))
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(HANG)
    assert ends == [True]


def test_a_wait_ends_when_it_is_over_or_asked_for() -> None:
    """False after the time; True at once where it is set, or soon after."""
    flag = SignalFlag()
    assert not flag.wait(0.01)
    threading.Timer(0.05, flag.set).start()
    assert flag.wait(HANG)
    assert flag.wait(HANG)
