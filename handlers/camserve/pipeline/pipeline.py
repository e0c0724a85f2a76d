"""The pipeline: parse every call, run the pictures in groups, explain those that ask, reply in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.labels import Labels
from camserve.core.messages import Answer, Call, Item, Page, Reply, Request
from camserve.explain.explainer import Explainer, Seen, Want
from camserve.explain.observer import Observation, Observer, sample_rows
from camserve.pictures.decode import open_picture
from camserve.pictures.limits import Quota, Semaphore
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.chunks import chunks, guarded, run_halving
from camserve.pipeline.compose import answered
from camserve.pipeline.glibc import give_back
from camserve.pipeline.prepare import Hooks, Pictures, Prepared
from camserve.protocol.parser import Parser
from camserve.protocol.reply import Responder, write_error

__all__ = ["Hooks", "Pipeline", "guarded"]

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

LARGE = 16_000_000
"""Pixels of one batch's pictures from which on their memory is given back: each thread that decodes would keep its own."""

AT_ONCE = 100_000_000
"""Pixels that are decoded, or drawn on, at once: each may take a dozen bytes meanwhile. Ordinary pictures never reach it."""

KEPT = 64_000_000
"""Pixels of a batch's pictures that are kept until they are drawn on; those beyond are decoded a second time."""

_UNSEEN = RequestError(500, "InternalError", "the model did not see this picture")


@dataclass(frozen=True)
class _Entry:
    """One item of the batch's `position`-th call, and how many pixels its picture has."""

    position: int
    explain: bool
    item: Item
    pixels: int


class Pipeline:
    """Answers batches of calls; each call gets what it would have got alone.

    Args:
        size: (height, width) of an input that the model is known to run on.
        page: what a browser gets; None: the error of an empty body.
    """

    def __init__(
        self,
        *,
        config: Config,
        labels: Labels,
        parser: Parser,
        explainer: Explainer,
        preprocess: Preprocess,
        responder: Responder,
        size: tuple[int, int] | None = None,
        hooks: Hooks | None = None,
        observer: Observer | None = None,
        page: Reply | None = None,
    ) -> None:
        self._config = config
        self._labels = labels
        self._parser = parser
        self._explainer = explainer
        self._responder = responder
        self._size = size
        self._hooks = hooks or Hooks()
        self._pictures = Pictures(
            config, preprocess, lambda image: open_picture(image.data, config, image.origin), self._hooks.tensor_of
        )
        self._page = page or write_error(RequestError(400, "NoImage", "the body is empty"))
        self.observer = observer or explainer.observer
        self._pixels = 0
        self._semaphore = Semaphore(AT_ONCE)
        self._threads = ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1)), thread_name_prefix="camserve")

    @property
    def observer(self) -> Observer:
        """Who is told of the answers, and of the explainer's passes."""
        return self._explainer.observer

    @observer.setter
    def observer(self, observer: Observer) -> None:
        self._explainer.observer = observer

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """One reply for each call, in order. Never raises for what a call holds."""
        with self.observer.stage("batch"):
            replies = self._replies(calls)
        if self._pixels > LARGE or any(reply.status == 507 for reply in replies):
            give_back()
        self._pixels = 0
        for call, reply in zip(calls, replies, strict=True):
            self.observer.replied(_mode(call, reply), reply.status, len(reply.body))
        return replies

    def _replies(self, calls: Sequence[Call]) -> list[Reply]:
        """The replies; a call for which memory ran out is tried again by itself, once its neighbours' pictures are let go of."""
        replies = self._together(calls, again=len(calls) > 1)
        if len(calls) > 1:
            for position, reply in enumerate(replies):
                if reply.status == 507:
                    give_back()
                    replies[position] = self._together([calls[position]], again=False)[0]
        return replies

    def _together(self, calls: Sequence[Call], *, again: bool) -> list[Reply]:
        """The replies; `again`: what runs out of memory is tried again, so its pictures are not told of yet."""
        requests, entries = self._read(calls)
        self._pixels += sum(entry.pixels for entry in entries)
        kept = Quota(KEPT)
        prepared = self._map(lambda entry: self._prepare(entry, kept), entries, [entry.pixels for entry in entries])
        seen = self._seen(prepared)
        failed = {entry.position for entry, one in zip(entries, seen, strict=True) if isinstance(one, RequestError)}
        limit = self._config.max_response_bytes
        rooms = [None if position in failed else Quota(limit) for position in range(len(requests))]
        works = [(ready, one, rooms[entry.position]) for entry, ready, one in zip(entries, prepared, seen, strict=True)]
        answers = self._map(lambda work: self._answer(*work), works, [self._drawing(*work) for work in works])
        gathered: dict[int, list[Answer | RequestError]] = {}
        for entry, answer in zip(entries, answers, strict=True):
            gathered.setdefault(entry.position, []).append(answer)
        replies = [self._reply(request, gathered.get(position, [])) for position, request in enumerate(requests)]
        for entry, ready, one in zip(entries, prepared, seen, strict=True):
            if not (again and replies[entry.position].status == 507):
                self._watch(ready, one)
        return replies

    def _read(self, calls: Sequence[Call]) -> tuple[list[Request | Page | RequestError], list[_Entry]]:
        """What each call asks, and the items of those that can be answered."""
        requests: list[Request | Page | RequestError] = []
        entries: list[_Entry] = []
        for position, call in enumerate(calls):
            request: Request | Page | RequestError = guarded(self._parser.parse, call)
            if isinstance(request, Request):
                sizes = guarded(self._pictures.sizes, request.items)
                if isinstance(sizes, RequestError):
                    request = sizes
                else:
                    entries += [_Entry(position, request.explain, *each) for each in zip(request.items, sizes, strict=True)]
            requests.append(request)
        return requests, entries

    def self_test(self, picture: NDArray[np.float32], layer: str | None) -> str:
        """Explains one normalised tensor `[3, H, W]` at `layer`, or only predicts it; what is wrong with the outcome, or ""."""
        want = Want(layer, self._config.method) if layer else None
        try:
            (seen,) = self._explainer.explain([torch.from_numpy(picture)], [want])
        except Exception as error:  # noqa: BLE001  # a layer may fail in any way; the worker says so and does not start
            return f"{type(error).__name__}: {error}".split("\n", 1)[0]
        if isinstance(seen, RequestError):
            return seen.message
        return "the map is not finite" if seen.maps and "not_finite" in seen.maps[0].warnings else ""

    def _map(self, work: Callable[[A], B], entries: Sequence[A], sizes: Sequence[int]) -> list[B | RequestError]:
        """`work` on every entry, in threads where there are several: decoding and encoding release the interpreter lock.

        Args:
            sizes: how many pixels each entry's work has in memory; what goes beyond `AT_ONCE` waits.
        """
        if len(entries) < 2:
            return [guarded(work, entry) for entry in entries]

        def in_turn(entry: A, size: int) -> B | RequestError:
            with self._semaphore.acquire(size):
                return guarded(work, entry)

        return list(self._threads.map(in_turn, entries, sizes))

    def _prepare(self, entry: _Entry, kept: Quota) -> Prepared:
        with self.observer.stage("decode"):
            return self._pictures.prepared(entry.item, kept, explain=entry.explain)

    def _seen(self, prepared: Sequence[Prepared | RequestError]) -> list[Seen | RequestError]:
        """Runs what could be prepared through the model, in groups of one size."""
        seen: list[Seen | RequestError] = [_UNSEEN if isinstance(entry, Prepared) else entry for entry in prepared]
        ready = [(position, entry) for position, entry in enumerate(prepared) if isinstance(entry, Prepared)]
        for chunk in chunks([tuple(entry.tensor.shape) for _, entry in ready], self._config.max_batch):
            part = [ready[index] for index in chunk]
            for (position, _), outcome in zip(part, run_halving(part, self._explain, self._blamed), strict=True):
                seen[position] = outcome
        return seen

    def _blamed(self, one: tuple[int, Prepared]) -> RequestError | None:
        """The client's own error, where the model fails on anything of this size."""
        _, entry = one
        height, width = entry.tensor.shape[1:]
        noise = np.random.default_rng(0).standard_normal(tuple(entry.tensor.shape), dtype=np.float32)
        if (height, width) == self._size or not self.self_test(noise, entry.item.options.layer if entry.explain else None):
            return None
        fails = "does not run" if self.self_test(noise, None) else "cannot be explained at this layer"
        own = f"; its own is {self._size[0]} x {self._size[1]}" if self._size else ""
        if entry.size is None:
            return RequestError(400, "InvalidTensor", f"data: the model {fails} on an input of {height} x {width}{own}")
        came = f"a picture of {entry.size[0]} x {entry.size[1]}, which makes an input of {height} x {width}"
        return RequestError(400, "InvalidImage", f"data: the model {fails} on {came}{own}")

    def _explain(self, part: Sequence[tuple[int, Prepared]]) -> list[Seen | RequestError]:
        entries = [entry for _, entry in part]
        tensors, wants = [entry.tensor for entry in entries], [_want(entry) for entry in entries]
        watched = [place for place in range(len(entries)) if self.observer.samples()]
        try:
            seen = self._explainer.explain(tensors, wants, watched)
        except Exception as error:
            if not watched:
                raise
            kind = type(error).__name__  # the error itself is let go of here: its traceback holds the chunk's tensors
        else:
            return seen
        logger.warning("a chunk of %d pictures failed (%s): trying it unwatched", len(part), kind)
        seen = self._explainer.explain(tensors, wants)  # if this fails too, watching was not to blame
        self.observer.missed("failed", len(watched))
        return seen

    def _watch(self, entry: Prepared | RequestError, seen: Seen | RequestError) -> None:
        """Hands a picture whose map was made to the observer; whatever is wrong with it harms no answer."""
        if isinstance(entry, RequestError) or isinstance(seen, RequestError) or not seen.raw:
            return
        try:
            size = entry.size or (entry.tensor.shape[2], entry.tensor.shape[1])
            rows = sample_rows(entry.tensor.detach().cpu().float().numpy())  # a handler's own may be of any type, anywhere
            self.observer.observe(Observation(seen.raw, rows, seen.classes[:2], size))
        except Exception:
            logger.exception("a picture cannot be watched")
            self.observer.missed("failed", 1)

    def _answer(self, entry: Prepared | RequestError, seen: Seen | RequestError, room: Quota | None) -> Answer | RequestError:
        """One item's answer; without pictures where there is no `room`, because the request has failed already.

        An error is returned: raised, it would hold this frame, and with it the picture, until cycles are collected.
        """
        if isinstance(entry, RequestError):
            return entry
        if isinstance(seen, RequestError):
            return seen
        answer = answered(seen, entry.size, entry.view, entry.item.options, self._labels)
        if self._hooks.predictions_of is not None:
            answer = replace(answer, predictions=self._hooks.predictions_of(seen.logits))
        return self._pictures.draw(answer, entry, room, self.observer) if entry.is_drawn and room else answer

    def _drawing(self, entry: Prepared | RequestError, seen: Seen | RequestError, room: Quota | None) -> int:
        """How many pixels `_answer` has in memory."""
        if isinstance(entry, RequestError) or isinstance(seen, RequestError) or room is None:
            return 0
        return self._pictures.drawn_pixels(entry, len(seen.maps))

    def _reply(self, request: Request | Page | RequestError, answers: Sequence[Answer | RequestError]) -> Reply:
        if isinstance(request, RequestError):
            return write_error(request)
        if isinstance(request, Page):
            return self._page
        good: list[Answer] = []
        for place, answer in enumerate(answers):
            if isinstance(answer, RequestError):
                whole = request.protocol == "plain" or answer.kind == "ResponseTooLarge"
                return write_error(answer if whole else answer.inside(f"instance {place}"))
            good.append(answer)
        reply = guarded(lambda given: self._responder.reply(request, given), good)
        return write_error(reply) if isinstance(reply, RequestError) else reply


def _mode(call: Call, reply: Reply) -> str:
    if reply.content_type.startswith("text/html"):
        return "page"
    return "explain" if call.explain else "predict"


def _want(entry: Prepared) -> Want | None:
    if not entry.explain:
        return None
    options = entry.item.options
    return Want(options.layer, options.method, options.targets, options.top_k)
