"""Mixed requests whose right answers are known, clients that send them all the time, and a verdict on each answer."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from tests.support.comparison.equality import assert_same

from camserve.tools.archive.archive import Response

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HANG = 120.0
"""Seconds without an answer after which a request counts as lost."""

RIGHT, WRONG, REFUSED, FAILED, LOST = "right", "wrong", "refused", "failed", "lost"
"""Verdicts: the answer that it gets alone; a 200 or an error that differs from it; the 503 of a full queue or of a server that
stops; another 5xx; no answer at all."""

REFUSALS = ("ServiceUnavailable", "QueueFull", "Stopping")
"""The errors' types, by host."""


class Served(Protocol):
    """A running server."""

    @property
    def url(self) -> str:
        """The address of predictions and explanations."""

    @property
    def management_url(self) -> str:
        """The management address."""

    @property
    def pids(self) -> list[int]:
        """The server's process id, then those of its workers."""


@dataclass(frozen=True)
class Ask:
    """One request."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of one request: times by `time.monotonic`, status 0 where no answer came, and in words what was not right."""

    ask: int
    begun: float
    ended: float
    status: int
    verdict: str
    words: str = ""

    @property
    def seconds(self) -> float:
        """From the request's begin to its answer's end."""
        return self.ended - self.begun

    @property
    def unsent(self) -> bool:
        """Whether nobody listened, so that no request was sent."""
        return self.words.startswith("NewConnectionError")


def mixed(model: str) -> list[Ask]:
    """Good requests and bad ones."""
    return [*good(model), *bad(model)]


def good(model: str) -> list[Ask]:
    """Both modes, three pictures, several targets, methods and formats."""
    cat, coffee, rocket = (_picture(name) for name in ("cat", "coffee", "rocket"))
    explain, predict = f"/explanations/{model}", f"/predictions/{model}"
    return [
        Ask(predict, cat),
        Ask(predict, coffee),
        Ask(explain, cat),
        Ask(explain, coffee),
        Ask(explain, rocket, {"X-Explain-Target": "1"}),
        Ask(explain, cat, {"X-Explain-Top-K": "2", "X-Explain-Method": "gradcam"}),
        Ask(explain, rocket, {"X-Explain-Target": "[0, 2]", "X-Explain-Method": "contrast"}),
        Ask(explain, coffee, {"Accept": "application/x-npy"}),
        Ask(explain, rocket, {"Accept": "image/png"}),
    ]


def bad(model: str) -> list[Ask]:
    """No picture, half of one, and an option that is none: each is a 4xx, after which TorchServe closes the connection."""
    cat, explain = _picture("cat"), f"/explanations/{model}"
    return [
        Ask(explain, b"no picture"),
        Ask(f"/predictions/{model}", cat[:1000]),
        Ask(explain, cat, {"X-Explain-Target": "no such label"}),
    ]


def _picture(name: str) -> bytes:
    return (EXAMPLES / f"{name}.jpg").read_bytes()


class Traffic:
    """Asks the server at `url`, and judges what it answers by what it answered to each of `asks` when each was alone.

    Connections are kept and used again, or with `keep` false made anew for each request.
    """

    def __init__(self, url: str, asks: Sequence[Ask], clients: int = 8, keep: bool = True) -> None:
        address = urlsplit(url)
        self.host, self.port = str(address.hostname), int(address.port or 80)
        self.asks = list(asks)
        self._keep = keep
        self._pool = self._connections(clients)
        self._known: list[list[Response]] = [[] for _ in self.asks]
        self._turns = count()
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []

    def learn(self) -> None:
        """Takes the answer to each request alone as a right one, beside those that were learnt before."""
        for number, (ask, known) in enumerate(zip(self.asks, self._known, strict=True)):
            answer = self.answer(number)
            if answer.status >= 500:
                raise RuntimeError(f"{ask.path} alone: {answer.status} {answer.body[:300]!r}")
            known.append(answer)

    def adopt(self, other: Traffic) -> None:
        """Takes the right answers of another, to the same requests in the same order, beside its own."""
        for known, more in zip(self._known, other._known, strict=True):
            known.extend(more)

    def forget(self) -> None:
        """Drops all right answers but those learnt last."""
        for known in self._known:
            del known[:-1]

    def ask(self, number: int | None = None) -> Outcome:
        """Sends one request, the next in turn by default, and keeps what came of it."""
        number = next(self._turns) % len(self.asks) if number is None else number
        begun = time.monotonic()
        try:
            answer = self.answer(number)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            outcome = Outcome(number, begun, time.monotonic(), 0, LOST, f"{type(error).__name__}: {error}")
        else:
            ended = time.monotonic()
            outcome = Outcome(number, begun, ended, answer.status, *self.judged(number, answer))
        with self._lock:
            self.outcomes.append(outcome)
        return outcome

    @contextmanager
    def running(self, clients: int, pause: float = 0) -> Iterator[None]:
        """`clients` ask one request after another, each after a `pause`, until the block ends and the last is answered."""
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                self.ask()
                stop.wait(pause)

        with ThreadPoolExecutor(clients, "client") as pool:
            futures = [pool.submit(client) for _ in range(clients)]
            try:
                yield
            finally:
                stop.set()
            for future in futures:
                future.result()

    def flood(self, rate: float, seconds: float, most: int) -> None:
        """Sends `rate` requests a second, whether earlier ones are answered or not (up to `most` at a time)."""
        free = threading.BoundedSemaphore(most)
        begun, sent = time.monotonic(), 0

        def send() -> None:
            try:
                self.ask()
            finally:
                free.release()

        with ThreadPoolExecutor(most, "client") as pool:
            futures: list[Future[None]] = []
            while (passed := time.monotonic() - begun) < seconds:
                while sent < passed * rate:
                    free.acquire()
                    futures.append(pool.submit(send))
                    sent += 1
                time.sleep(1 / rate)
            for future in futures:
                future.result()

    def since(self, moment: float) -> list[Outcome]:
        """What came of the requests that began at `moment` or later."""
        with self._lock:
            return [each for each in self.outcomes if each.begun >= moment]

    def answer(self, number: int) -> Response:
        """Sends one request, and neither judges nor keeps what came of it."""
        ask = self.asks[number]
        with nullcontext(self._pool) if self._keep else closing(self._connections(1)) as connections:
            came = connections.urlopen("POST", ask.path, ask.body, dict(ask.headers))
        ours = {name.lower(): value for name, value in came.headers.items() if name.lower().startswith("x-explain")}
        return Response(came.status, came.headers.get("content-type", ""), ours, came.data)

    def _connections(self, most: int) -> urllib3.HTTPConnectionPool:
        patience = urllib3.Timeout(connect=HANG, read=HANG)
        return urllib3.HTTPConnectionPool(self.host, self.port, maxsize=most, retries=False, timeout=patience)

    def judged(self, number: int, answer: Response) -> tuple[str, str]:
        """The verdict of an answer to one of the requests, by those learnt until now, and why it is not a right one."""
        if answer.status >= 500:
            told = _told(answer)
            return (REFUSED if answer.status == 503 and told.startswith(REFUSALS) else FAILED), told
        why = ""
        for known in self._known[number]:
            try:
                assert_same(answer, known)
                return RIGHT, ""
            except AssertionError as error:
                why = str(error)
        ask = self.asks[number]
        return WRONG, f"{ask.path} {dict(ask.headers)}: {answer.content_type} {' '.join(why.split())[:300]}"


def _told(answer: Response) -> str:
    try:
        error = json.loads(answer.body)
        return f"{error['type']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return repr(answer.body[:200])


def tally(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many requests had each verdict."""
    return Counter(each.verdict for each in outcomes)


def wait_until(true: Callable[[], bool], what: str, limit: float = HANG) -> float:
    """Waits; the seconds that it took.

    Raises:
        TimeoutError: not within `limit` seconds.
    """
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > limit:
            raise TimeoutError(f"after {limit:g} s: still not {what}")
        time.sleep(0.05)
    return time.monotonic() - begun
