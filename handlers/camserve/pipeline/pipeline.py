"""Answers batches of calls: parses all, runs the pictures in chunks, explains those that ask, replies in order."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import repeat

import numpy as np

from camserve.capture.survey.layout import find_spread
from camserve.capture.tuning.glibc import give_back
from camserve.core.errors import RequestError
from camserve.core.messages import BEYOND, Answer, Call, ImageInfo, Item, Page, Reply, Request, name_layer
from camserve.core.served import Served
from camserve.explain.areas import locate
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.faithfulness import check_maps, count_passes
from camserve.explain.observer import Observation, Origin, sample_rows
from camserve.explain.ranking import Task
from camserve.explain.sampling import NOTHING, SamplingPolicy
from camserve.inspector.page import write_page
from camserve.pictures.bounds.limits import Deadline, Quota
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.chunks import JobThreads, guard, run_bisecting, split_into_chunks
from camserve.pipeline.opening import find_fault
from camserve.pipeline.prepare import Hooks, Job, Pictures
from camserve.protocol.body import price_numbers
from camserve.protocol.parser import Parser
from camserve.protocol.reply import Responder, write_error

logger = logging.getLogger(__name__)

LARGE_BATCH = 16_000_000
"""Pixels of one batch from which on freed memory is given back: each thread that decodes would keep its own."""

_DECODED, _PREDICTED, _CHECKED = 0.5, 0.8, 0.9
"""Shares of a batch's time after which decoding ends, and passes end: what small requests still need is left to them."""

_PASS = 20
"""Units of work (`pictures.bounds.work`) of a model's pass over one picture, to say which requests come first."""


class Pipeline:
    """Answers batches of calls; each call gets what it would have got alone.

    Args:
        served: what the archive offers; its `size` is an input that the model is known to run on.
        explainer: runs the model.
        preprocess: a picture to the model's input.
        hooks: steps that a handler of a user's own replaces.
    """

    def __init__(self, served: Served, explainer: Explainer, preprocess: Preprocess, hooks: Hooks | None = None) -> None:
        self.explainer = explainer
        self._served = served
        self._hooks = hooks or Hooks()
        self._parser = Parser(served)
        self._responder = Responder(served)
        self._pictures = Pictures(served.config, preprocess, self._hooks.tensor_of)
        self._sampling = SamplingPolicy(free=served.layers[0] in explainer.backend.closed_form)
        self._threads = JobThreads()

    @cached_property
    def _page(self) -> Reply:
        return write_page(self._served)

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer a batch: one reply for each call, in order. Never raises for what a call holds.

        A call for which memory ran out is tried again by itself, once its neighbours' pictures are let go of.
        """
        observer = self.explainer.observer
        with observer.stage("batch"):
            replies, pixels = self._reply_to(calls, again=len(calls) > 1)
            for position, reply in enumerate(replies):
                if reply.status == 507 and len(calls) > 1:
                    give_back()
                    (replies[position],), more = self._reply_to([calls[position]], again=False, first=position)
                    pixels += more
        if pixels > LARGE_BATCH or any(reply.status == 507 for reply in replies):
            give_back()
        for call, reply in zip(calls, replies, strict=True):
            observer.replied(_mode(call, reply), reply.status, len(reply.body))
        return replies

    def answer(self, items: Sequence[Item], *, explain: bool) -> list[Answer | RequestError]:
        """Answer pictures that come without a protocol, each on its own: one answer or error for each, in order."""
        measures = [self._pictures.measure_alone(item) for item in items]
        jobs = [Job(place, *each, error=each[2].fault) for place, each in enumerate(zip(items, repeat(explain), measures))]
        self._run_jobs(jobs, Deadline())
        for job in jobs:
            self._observe(job, job.call, Call(explain, {}, {}))
        unanswered = RequestError(500, "InternalError", "the picture has no answer")
        return [job.error or job.answer or unanswered for job in jobs]

    def _reply_to(self, calls: Sequence[Call], *, again: bool, first: int = 0) -> tuple[list[Reply], int]:
        """Answer each call, and count their pixels; `again`: what runs out of memory is not observed, for it is tried again.

        `first` is the first call's position in its batch.
        """
        requests, jobs = self._read(calls)
        self._run_jobs(sorted(jobs, key=lambda job: job.rank), Deadline(self._served.config.max_seconds), bounded=True)
        by_call: dict[int, list[Job]] = {}
        for job in jobs:
            by_call.setdefault(job.call, []).append(job)
        replies = [self._reply(request, by_call.get(position, [])) for position, request in enumerate(requests)]
        for job in jobs:
            if not (again and replies[job.call].status == 507):
                self._observe(job, first + job.call, calls[job.call], requests[job.call], by_call[job.call])
        return replies, sum(job.measure.pixels for job in jobs)

    def _read(self, calls: Sequence[Call]) -> tuple[list[Request | Page | RequestError], list[Job]]:
        """Read what each call asks, and make the jobs of those that can be answered."""
        faults = self._pictures.share([[price_numbers(call.fields)] for call in calls])
        requests: list[Request | Page | RequestError] = [
            fault if fault else guard(self._parser.parse, call) for fault, call in zip(faults, calls, strict=True)
        ]
        asked = [(position, request) for position, request in enumerate(requests) if isinstance(request, Request)]
        outcomes = guard(self._pictures.measure, [request for _, request in asked])
        jobs: list[Job] = []
        for place, (position, request) in enumerate(asked):
            outcome = outcomes if isinstance(outcomes, RequestError) else outcomes[place]
            if isinstance(outcome, RequestError):
                requests[position] = outcome
                continue
            tasks = [Task.of(item.options) if request.explain else None for item in request.items]
            passes = sum(map(self.explainer.count_passes, tasks)) + sum(map(count_passes, request.items)) * request.explain
            rank = sum(each.work for each in outcome) + _PASS * passes
            each = zip(request.items, outcome, strict=True)
            jobs += [Job(position, item, request.explain, found, rank, error=found.fault) for item, found in each]
        return requests, jobs

    def _run_jobs(self, jobs: Sequence[Job], deadline: Deadline, *, bounded: bool = False) -> None:
        """Take each job to its answer or its error; `bounded`: they share the checks of one batch."""
        canvases = self._pictures.canvas_quota()
        decoding = deadline.until(_DECODED)
        self._threads.take(lambda job: self._prepare(job, canvases, decoding), jobs, lambda job: job.measure.pixels)
        self._predict(jobs, deadline.until(_PREDICTED))
        self._check(jobs, deadline.until(_CHECKED), bounded=bounded)
        failed = {job.call for job in jobs if job.error}
        limit = self._served.config.max_response_bytes
        quotas = {job.call: Quota(limit) for job in jobs if job.call not in failed}  # nothing is drawn for a request that fails
        self._threads.take(
            lambda job: self._answer(job, quotas.get(job.call), deadline),
            jobs,
            lambda job: self._pictures.drawing_pixels(job) if job.call in quotas else 0,
        )

    def _prepare(self, job: Job, canvases: Quota, deadline: Deadline) -> None:
        deadline.check("this picture was decoded")
        with self.explainer.observer.stage("decode"):
            self._pictures.prepare(job, canvases)

    def _predict(self, jobs: Sequence[Job], deadline: Deadline) -> None:
        """Run what could be prepared through the model, in chunks of one size."""
        ready = [job for job in jobs if job.error is None]
        for places in split_into_chunks([tuple(job.input.shape) for job in ready], self._served.config.max_batch):
            part = [ready[place] for place in places]
            for job, outcome in zip(part, run_bisecting(part, partial(self._explain_chunk, deadline), self._blame), strict=True):
                if isinstance(outcome, RequestError):
                    job.error = outcome
                else:
                    job.prediction = outcome

    def _check(self, jobs: Sequence[Job], deadline: Deadline, *, bounded: bool) -> None:
        """Ask the model how far the heatmaps are borne out, where that is asked for.

        How many labels reach a threshold, and have a heatmap each, is known only now.
        """
        asked = [(job, job.prediction) for job in jobs if job.explain and job.item.options.check and job.prediction]
        counts = Counter(job.call for job, prediction in asked for _ in prediction.explanations)
        faults = dict(zip(counts, self._pictures.share_checks([*counts.values()]), strict=True)) if bounded else {}
        for job in jobs:
            job.error = job.error or faults.get(job.call)
        asked = [(job, prediction) for job, prediction in asked if job.error is None]
        pairs = [(job.input, prediction) for job, prediction in asked]
        outcomes = guard(lambda several: check_maps(self.explainer, several, self._served.config.max_batch, deadline), pairs)
        for place, (job, _) in enumerate(asked):
            outcome = outcomes if isinstance(outcomes, RequestError) else outcomes[place]
            if isinstance(outcome, RequestError):
                job.error = outcome
            else:
                job.prediction = outcome

    def _explain_chunk(self, deadline: Deadline, part: Sequence[Job]) -> list[Prediction | RequestError]:
        observer = self.explainer.observer
        late = guard(deadline.check, "the model saw this picture")
        if late:
            return [late] * len(part)
        tensors, tasks = [job.input for job in part], [Task.of(job.item.options) if job.explain else None for job in part]
        plan = self._sampling.plan(len(part), observer.samples, observer.budget)
        try:
            predictions = self.explainer.explain(tensors, tasks, plan, deadline)
        except Exception as error:
            if not plan.rows:
                raise
            kind = type(error).__name__  # the error itself is let go of here: its traceback holds the chunk's tensors
        else:
            if plan.skipped:  # counted only now: a chunk that fails comes again in halves
                observer.missed("budget", plan.skipped)
            return predictions
        logger.warning("a chunk of %d pictures failed (%s): trying it unobserved", len(part), kind)
        predictions = self.explainer.explain(tensors, tasks, NOTHING, deadline)  # if this fails too, measuring was not to blame
        observer.missed("failed", len(plan.rows))
        return predictions

    def _blame(self, job: Job) -> RequestError | None:
        """Return the client's own error, where the model fails on anything of this size."""
        shape, size = tuple(job.input.shape), self._served.size
        spread = np.float32(find_spread(self._served.config))
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * spread
        asked = job.item.options
        task = Task(asked.layer, asked.method) if job.explain else None
        if shape[1:] == size or not find_fault(self.explainer, noise, task):
            return None
        fails = "does not run" if find_fault(self.explainer, noise, None) else "cannot be explained at this layer"
        own = f"; its own is {size[0]} x {size[1]}" if size else ""
        given = f"an input of {shape[1]} x {shape[2]}"
        if job.size is None:
            return RequestError(400, "InvalidTensor", f"data: the model {fails} on {given}{own}")
        came = f"a picture of {job.size[0]} x {job.size[1]}, which makes {given}"
        return RequestError(400, "InvalidImage", f"data: the model {fails} on {came}{own}")

    def _answer(self, job: Job, quota: Quota | None, deadline: Deadline) -> None:
        """Make one item's answer; without pictures where there is no quota, because its request has failed already."""
        if job.prediction is None:
            raise ValueError("the model did not see this picture")
        image = None if job.size is None else ImageInfo(*job.size, job.view)
        options = job.item.options
        explanations = locate(job.prediction.explanations, image, options, self._served.config, deadline)
        layer = name_layer(options.layer)
        answer = Answer(job.prediction.classes, explanations, image, options.method, layer, grid=job.prediction.grid)
        answer = replace(answer, asked=frozenset(name for name in BEYOND if getattr(options, name)))
        if self._hooks.predictions_of is not None:
            answer = replace(answer, predictions=self._hooks.predictions_of(job.prediction.logits))
        if job.needs_drawing and quota:
            deadline.check("this picture was drawn on")
            answer = self._pictures.draw(job, answer, quota, self.explainer.observer)
        job.answer = answer

    def _observe(
        self, job: Job, place: int, call: Call, request: Request | Page | RequestError | None = None, jobs: Sequence[Job] = ()
    ) -> None:
        """Hand a picture whose maps were made to the observer; whatever is wrong with it harms no answer.

        `place` is the position of its call in the batch, and `jobs` are those of its request.
        """
        if job.prediction is None or not job.prediction.raw_maps:
            return
        observer = self.explainer.observer
        try:
            size = job.size or (job.input.shape[2], job.input.shape[1])
            rows = sample_rows(job.input.detach().cpu().float().numpy())  # a handler's own may be of any type, anywhere
            scores = tuple((score.index, score.probability) for score in job.prediction.classes[:2])
            if self._served.scores == "none":
                scores = (scores[0], (-1, math.nan))  # nothing that a value exceeds
            origin = None
            if observer.keeps:
                named = call.named or (request.id if isinstance(request, Request) and request.id else call.id)
                info = None if job.size is None else ImageInfo(*job.size, job.view)
                about = (named, call.id, next((turn for turn, each in enumerate(jobs) if each is job), 0))
                origin = Origin(time.time(), job.item.image, info, job.prediction.classes, job.explain, *about)
            observer.observe(Observation(job.prediction.raw_maps, rows, scores, size, place, origin))
        except Exception:
            logger.exception("a picture cannot be observed")
            observer.missed("failed", 1)

    def _reply(self, request: Request | Page | RequestError, jobs: Sequence[Job]) -> Reply:
        if isinstance(request, RequestError):
            return write_error(request)
        if isinstance(request, Page):
            return self._page
        for place, job in enumerate(jobs):
            if job.error:
                whole = request.protocol == "plain" or job.error.kind == "ResponseTooLarge"
                return write_error(job.error if whole else job.error.inside(f"instance {place}"))
        answers = [job.answer for job in jobs if job.answer]
        reply = guard(lambda several: self._responder.reply(request, several), answers)
        return write_error(reply) if isinstance(reply, RequestError) else reply


def _mode(call: Call, reply: Reply) -> str:
    if reply.content_type.startswith("text/html"):
        return "page"
    return "explain" if call.explain else "predict"
