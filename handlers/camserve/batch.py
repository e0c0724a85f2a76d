"""The pipeline: parse every call, run the pictures in groups, explain those that ask, reply in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camserve import geometry
from camserve.config import Config
from camserve.drawing import drawn
from camserve.errors import RequestError
from camserve.explainer import Explainer, Map, Seen, Want
from camserve.geometry import Rect
from camserve.groups import chunks, is_out_of_memory, run_halving
from camserve.images import Preprocess, open_picture
from camserve.labels import Labels
from camserve.looks import Look, rows_of
from camserve.memory import give_back
from camserve.negotiate import PICTURES
from camserve.request import Call, Item, Page, Parser, Request
from camserve.response import Answer, Explanation, ImageInfo, Reply, Responder, Score, failure
from camserve.watcher import Watcher

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

LARGE = 16_000_000
"""Pixels of one batch's pictures from which on their memory is given back: each thread that decodes would keep its own."""

_UNSEEN = RequestError(500, "InternalError", "the model did not see this picture")


@dataclass(frozen=True)
class Prepared:
    """One item, ready for the model: its tensor `[3, H, W]`; the picture, and the part of it that the model sees."""

    item: Item
    explain: bool
    tensor: Tensor
    picture: Image.Image | None = None
    view: Rect | None = None


@dataclass(frozen=True)
class Hooks:
    """What a handler that subclasses ours replaces.

    `tensor_of` makes the model's input `[3, H, W]` of an item's encoded picture or tensor (a `preprocess` of its own);
    `predictions_of` makes the answer of a prediction of the scores `[K]` (a `postprocess` of its own).
    """

    tensor_of: Callable[[Any], Tensor] | None = None
    predictions_of: Callable[[Tensor], Any] | None = None


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
        watcher: Watcher | None = None,
        page: Reply | None = None,
    ) -> None:
        self._config = config
        self._labels = labels
        self._parser = parser
        self._explainer = explainer
        self._preprocess = preprocess
        self._responder = responder
        self._size = size
        self._hooks = hooks or Hooks()
        self._page = page or failure(RequestError(400, "NoImage", "the body is empty"))
        self.watcher = watcher or explainer.watcher
        self._pixels = 0
        self._threads = ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1)), thread_name_prefix="camserve")

    @property
    def watcher(self) -> Watcher:
        """Who is told of the answers, and of the explainer's passes."""
        return self._explainer.watcher

    @watcher.setter
    def watcher(self, watcher: Watcher) -> None:
        self._explainer.watcher = watcher

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """One reply for each call, in order. Never raises for what a call holds."""
        with self.watcher.stage("batch"):
            replies = self._replies(calls)
        if self._pixels > LARGE or any(reply.status == 507 for reply in replies):
            give_back()
        self._pixels = 0
        for call, reply in zip(calls, replies, strict=True):
            self.watcher.replied(_mode(call, reply), reply.status, len(reply.body))
        return replies

    def _replies(self, calls: Sequence[Call]) -> list[Reply]:
        """The replies; a call for which memory ran out is tried again by itself, once its neighbours' pictures are let go of."""
        replies = self._together(calls)
        if len(calls) > 1:
            for position, reply in enumerate(replies):
                if reply.status == 507:
                    give_back()
                    replies[position] = self._together([calls[position]])[0]
        return replies

    def _together(self, calls: Sequence[Call]) -> list[Reply]:
        requests = [guarded(self._parser.parse, call) for call in calls]
        entries = [
            (position, request.explain, item)
            for position, request in enumerate(requests)
            if isinstance(request, Request)
            for item in request.items
        ]
        prepared = self._map(lambda entry: self._prepare(entry[2], explain=entry[1]), entries)
        self._pixels += sum(_pixels(entry) for entry in prepared)
        seen = self._seen(prepared)
        answers = self._map(lambda pair: self._answer(*pair), zip(prepared, seen, strict=True))
        gathered: dict[int, list[Answer | RequestError]] = {}
        for (position, _, _), answer in zip(entries, answers, strict=True):
            gathered.setdefault(position, []).append(answer)
        return [self._reply(request, gathered.get(position, [])) for position, request in enumerate(requests)]

    def self_test(self, picture: NDArray[np.float32], layer: str) -> str:
        """Explains one normalised tensor `[3, H, W]` at `layer`; what is wrong with the outcome, or ""."""
        try:
            (seen,) = self._explainer.explain([torch.from_numpy(picture)], [Want(layer, self._config.method)])
        except Exception as error:  # noqa: BLE001  # a layer may fail in any way; the worker says so and does not start
            return f"{type(error).__name__}: {error}".split("\n", 1)[0]
        if isinstance(seen, RequestError):
            return seen.message
        return "the map is not finite" if "not_finite" in seen.maps[0].warnings else ""

    def _map(self, work: Callable[[A], B], entries: Iterable[A]) -> list[B | RequestError]:
        """`work` on every entry, in threads where there are several: decoding and encoding release the interpreter lock."""
        entries = list(entries)
        if len(entries) < 2:
            return [guarded(work, entry) for entry in entries]
        return list(self._threads.map(lambda entry: guarded(work, entry), entries))

    def _prepare(self, item: Item, *, explain: bool) -> Prepared:
        with self.watcher.stage("decode"):
            return self._decoded(item, explain=explain)

    def _decoded(self, item: Item, *, explain: bool) -> Prepared:
        if isinstance(item.image, np.ndarray):
            return Prepared(item, explain, torch.from_numpy(item.image))
        if self._hooks.tensor_of is None:
            picture = open_picture(item.image, self._config)
            return Prepared(item, explain, self._preprocess(picture), picture, self._preprocess.view(*picture.size))
        tensor = self._hooks.tensor_of(item.image)
        return Prepared(item, explain, tensor, open_picture(item.image, self._config) if explain else None)

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
        if (height, width) == self._size or not self.self_test(noise, entry.item.options.layer):
            return None
        own = f"; its own is {self._size[0]} x {self._size[1]}" if self._size else ""
        if entry.picture is None:
            return RequestError(400, "InvalidTensor", f"data: the model does not run on an input of {height} x {width}{own}")
        came = f"a picture of {entry.picture.width} x {entry.picture.height}, which makes an input of {height} x {width}"
        return RequestError(400, "InvalidImage", f"data: the model does not run on {came}{own}")

    def _explain(self, part: Sequence[tuple[int, Prepared]]) -> list[Seen | RequestError]:
        entries = [entry for _, entry in part]
        tensors, wants = [entry.tensor for entry in entries], [_want(entry) for entry in entries]
        watched = [place for place in range(len(entries)) if self.watcher.samples()]
        try:
            seen = self._explainer.explain(tensors, wants, watched)
        except Exception as error:
            if not watched:
                raise
            self.watcher.missed("failed", len(watched))
            logger.warning("a chunk of %d pictures failed (%s): trying it unwatched", len(part), type(error).__name__)
            return self._explainer.explain(tensors, wants)
        for place in watched:
            self._watch(entries[place], seen[place])
        return seen

    def _watch(self, entry: Prepared, seen: Seen | RequestError) -> None:
        if isinstance(seen, RequestError) or not seen.raw:
            return
        size = entry.picture.size if entry.picture else (entry.tensor.shape[2], entry.tensor.shape[1])
        self.watcher.saw(Look(seen.raw, rows_of(entry.tensor.numpy()), seen.classes[:2], size))

    def _answer(self, entry: Prepared | RequestError, seen: Seen | RequestError) -> Answer:
        if isinstance(entry, RequestError):
            raise entry
        if isinstance(seen, RequestError):
            raise seen
        options = entry.item.options
        classes = tuple(Score(index, self._labels[index], probability) for index, probability in seen.classes)
        info = None if entry.picture is None else ImageInfo(*entry.picture.size, entry.view)
        explanations = tuple(self._explanation(found, info) for found in seen.maps)
        answer = Answer(classes, explanations, info, options.method, options.layer)
        if self._hooks.predictions_of is not None:
            answer = replace(answer, predictions=self._hooks.predictions_of(seen.logits))
        return self._drawn(answer, entry) if entry.explain else answer

    def _explanation(self, found: Map, info: ImageInfo | None) -> Explanation:
        region = None
        if info is not None and info.view is not None and not found.warnings:
            region = geometry.region(found.heatmap, info.view, info.width, info.height)
        label = self._labels[found.target]
        return Explanation(found.target, label, found.probability, found.heatmap, found.range, region, found.warnings)

    def _drawn(self, answer: Answer, entry: Prepared) -> Answer:
        """The answer with its picture, or with an overlay in each explanation, where that is asked for."""
        options = entry.item.options
        if entry.picture is None or not (options.media in PICTURES or options.overlay):
            return answer
        with self.watcher.stage("render"):
            return drawn(answer, entry.picture, entry.view, options, self._config.max_picture_side)

    def _reply(self, request: Request | Page | RequestError, answers: Sequence[Answer | RequestError]) -> Reply:
        if isinstance(request, RequestError):
            return failure(request)
        if isinstance(request, Page):
            return self._page
        good: list[Answer] = []
        for place, answer in enumerate(answers):
            if isinstance(answer, RequestError):
                return failure(answer if request.protocol == "plain" else answer.inside(f"instance {place}"))
            good.append(answer)
        reply = guarded(lambda given: self._responder.reply(request, given), good)
        return failure(reply) if isinstance(reply, RequestError) else reply


def guarded(work: Callable[[A], B], entry: A) -> B | RequestError:
    """`work(entry)`, or the request's own error; anything unforeseen is logged and becomes a 500 for this request alone."""
    try:
        return work(entry)
    except RequestError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            return RequestError(507, "OutOfMemory", "this picture does not fit into the worker's memory, even by itself")
        logger.exception("one request failed")
        return RequestError(500, "InternalError", "an unforeseen fault; the server's log says more")


def _mode(call: Call, reply: Reply) -> str:
    if reply.content_type.startswith("text/html"):
        return "page"
    return "explain" if call.explain else "predict"


def _pixels(entry: Prepared | RequestError) -> int:
    if isinstance(entry, RequestError) or entry.picture is None:
        return 0
    return entry.picture.width * entry.picture.height


def _want(entry: Prepared) -> Want | None:
    if not entry.explain:
        return None
    options = entry.item.options
    return Want(options.layer, options.method, options.targets, options.top_k)
