"""The semaphore that work of different sizes waits for, and the quota that is used up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.processes.waiting import HANG

from camserve.pictures.bounds.limits import Quota, Semaphore


def test_the_holders_of_a_semaphore_stay_within_its_limit() -> None:
    """In many threads; what is larger than the limit runs alone, what has no size runs beside it."""
    semaphore, lock = Semaphore(10), threading.Lock()
    inside: list[int] = []
    sums: list[tuple[int, int]] = []

    def work(size: int) -> None:
        with semaphore.acquire(size):
            with lock:
                inside.append(size)
                sums.append((sum(inside), sum(1 for each in inside if each)))
            time.sleep(0.001)
            with lock:
                inside.remove(size)

    sizes = [1, 4, 7, 0, 10, 25, 3, 3, 3, 11] * 8
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, sizes))

    assert len(sums) == len(sizes)
    assert all(total <= 10 or (total in (11, 25) and several == 1) for total, several in sums)
    assert max(several for _, several in sums) > 1


def test_work_without_a_size_never_waits() -> None:
    """Also while larger work has the semaphore for itself."""
    semaphore, done = Semaphore(10), threading.Event()

    def work() -> None:
        with semaphore.acquire(0):
            done.set()

    with ThreadPoolExecutor(1) as threads, semaphore.acquire(25):
        threads.submit(work)
        assert done.wait(HANG)


def test_work_that_fails_releases_the_semaphore() -> None:
    """Else the next would wait for ever."""
    semaphore = Semaphore(10)
    for _ in range(3):
        with pytest.raises(MemoryError), semaphore.acquire(8):
            raise MemoryError
    with semaphore.acquire(10):
        pass


def test_a_quota_is_used_up_and_remembers_what_did_not_fit() -> None:
    """To the last unit, and what does not fit leaves the rest."""
    quota = Quota(10)
    assert [quota.take(amount) for amount in (4, 6, 0)] == [True, True, True]
    assert not quota.exceeded
    assert not quota.take(1)
    assert quota.exceeded
    other = Quota(10)
    assert [other.take(amount) for amount in (11, 9, 2, 1)] == [False, True, False, True]
