"""The engine: one thread that computes, step by step, whatever is asked."""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apr_agents.engine.decoder import PROBE, Decoder, Part
from apr_agents.engine.pool import Pool, token_bytes
from apr_agents.engine.request import FinishReason, Generate, Token
from apr_agents.engine.sampler import Sampler
from apr_agents.engine.scheduler import Scheduler, Sequence, Work
from apr_agents.errors import InvalidOption, PromptTooLong

Hear = Callable[[Token], None]

log = logging.getLogger(__name__)

CPU_LANES = 32
"""Measured, on one core: a step of so many sequences takes about twice as long as one of one."""

GPU_CACHE_SHARE = 0.6
"""Share of a GPU's free memory that keys and values may take."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is to be.

    Attributes:
        cache_tokens: tokens whose keys and values are kept at most.
        most_running: sequences that compute at the same time.
        most_tokens: prompt tokens that one step computes.
        lanes: sequences that hardly slow each other down; see `Engine.free_lanes`.
    """

    cache_tokens: int = 32768
    most_running: int = 256
    most_tokens: int = 512
    lanes: int = 256

    def __post_init__(self) -> None:
        least = {"cache_tokens": PROBE + 1, "most_running": 1, "most_tokens": 1, "lanes": 1}
        for option, limit in least.items():
            if getattr(self, option) < limit:
                raise InvalidOption(option, getattr(self, option), f"at least {limit}")

    @classmethod
    def suiting(cls, model: PreTrainedModel) -> EngineOptions:
        """What suits the device that ``model`` is on."""
        if model.device.type != "cuda":
            return cls(lanes=CPU_LANES)
        free, _ = torch.cuda.mem_get_info(model.device)
        cache_tokens = int(GPU_CACHE_SHARE * free) // token_bytes(model)
        return cls(cache_tokens=cache_tokens, most_tokens=4096)


@dataclass
class Statistics:
    """What an engine has done so far.

    Attributes:
        prefilled: tokens of prompts that were computed; with them, those of any text that
            were computed again because their slots were needed.
        generated: tokens generated.
        cached: prompt tokens that did not have to be computed when their request began.
    """

    prefilled: int = 0
    generated: int = 0
    cached: int = 0


class _Live(NamedTuple):
    """A request that has not ended."""

    sequence: Sequence
    sampler: Sampler
    hear: Hear


class _Asked(NamedTuple):
    """A request that the thread has not seen yet."""

    number: int
    request: Generate
    hear: Hear


class Engine:
    """Runs requests on a Hugging Face decoder, forks over one copy of their common prefix.

    Args:
        model: a decoder on its device, in its precision. From then on it belongs to the engine.
        options: without them, what suits the device.

    Attributes:
        context_length: tokens that one sequence may have in this model; ``None`` where that is
            not known.

    Raises:
        UnsupportedModel: its attention cannot be replaced, or gives other results then.
    """

    def __init__(self, model: PreTrainedModel, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions.suiting(model)
        self.statistics = Statistics()
        self.pool = Pool(self.options.cache_tokens)
        self.decoder = Decoder(model, self.pool)
        self.scheduler = Scheduler(
            self.pool,
            most_running=self.options.most_running,
            most_tokens=self.options.most_tokens,
        )
        self.context_length = self.decoder.context_length
        self._longest = min(self.context_length or self.pool.slots, self.pool.slots)
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._asked: list[_Asked] = []
        self._cancelled: set[int] = set()
        self._live: dict[int, _Live] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    # --- what others call, from any thread -------------------------------------

    def submit(self, request: Generate, hear: Hear) -> int:
        """Ask; ``hear`` gets each token from the engine's thread, the last with a finish.

        Returns:
            The number with which to `cancel` it.

        Raises:
            PromptTooLong: the prompt leaves no room in the model's context or the cache.
            InvalidOption: the prompt has tokens that the model does not know.
        """
        if len(request.ids) >= self._longest:
            raise PromptTooLong(len(request.ids), self._longest)
        if min(request.ids) < 0 or max(request.ids) >= self.decoder.vocabulary:
            expected = f"from 0 to {self.decoder.vocabulary - 1}"
            raise InvalidOption("ids", [min(request.ids), max(request.ids)], expected)
        with self._changed:
            number = next(self._numbers)
            self._asked.append(_Asked(number, request, hear))
            if self._thread is None:
                self._start()
            self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        """End a request before its next step; it then hears a last token, ``cancelled``.

        Nothing happens where it has ended already.
        """
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify()

    def stop(self) -> None:
        """End all requests and the thread. `submit` starts it again."""
        with self._changed:
            thread = self._thread
            if thread is None:
                return
            self._stopping = True
            self._changed.notify()
        if thread is not threading.current_thread():
            thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run and requests that wait."""
        with self._changed:
            running = len(self.scheduler.running)
            return running, max(0, len(self._live) + len(self._asked) - running)

    @property
    def free_lanes(self) -> int:
        """Requests that it could compute beside those it has, and hardly be slower for it."""
        lanes = min(self.options.lanes, self.options.most_running)
        return max(0, lanes - sum(self.load))

    # --- the thread --------------------------------------------------------------

    def _start(self) -> None:
        _STARTED.add(self)
        self._thread = threading.Thread(target=self._run, name="apr-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._take_orders():
            self._step()
        with self._changed:
            self._stopping, self._thread = False, None
            if self._asked:  # while it was stopping
                self._start()

    def _take_orders(self) -> bool:
        """New requests and cancellations; waits while there is nothing to do."""
        with self._changed:
            while not (self._asked or self._cancelled or self._live or self._stopping):
                self._changed.wait()
            for number, request, hear in self._asked:
                sequence = self.scheduler.add(request, number)
                self._live[number] = _Live(sequence, Sampler(request), hear)
            self._asked.clear()
            stopping = self._stopping
            ended = [*self._live] if stopping else sorted(self._cancelled & self._live.keys())
            self._cancelled.clear()
        for number in ended:
            self._end(number, Token(None, "cancelled"))
        return not stopping

    def _step(self) -> None:
        """Compute what is due. Whatever goes wrong ends the requests it was for, and no others."""
        numbers = [*self._live]
        try:
            work = self.scheduler.next()
            numbers = [part.sequence.number for part in work]
            logits = self.decoder.logits([_part(part) for part in work]) if work else None
        except Exception as error:
            log.exception("A step failed, and with it the requests it was for.")
            for number in numbers:
                self._fail(number, error)
        else:
            self._go_on(work, logits)

    def _go_on(self, work: list[Work], logits: Tensor | None) -> None:
        """Take what was computed, choose the next tokens and tell them."""
        # In half precision, argmax takes several times as long.
        likeliest = [] if logits is None else logits.float().argmax(-1).tolist()
        if logits is not None and not all(
            self._live[part.sequence.number].sampler.is_plain for part in work if part.samples
        ):
            logits = logits.float().cpu()
        row = 0
        for part in work:
            sequence = part.sequence
            samples = part.samples
            self.statistics.prefilled += part.prefilled
            self.scheduler.computed(part)
            if not samples:
                continue
            live = self._live[sequence.number]
            try:
                if live.sampler.is_plain:
                    token = Token(likeliest[row])
                else:
                    assert logits is not None
                    token = live.sampler.choose(logits[row], sequence.ids)
                token = self._added(sequence, token)
            except Exception as error:  # a constraint, or whatever says where to stop
                log.exception("A constraint or a stop failed, and with it its request.")
                self._fail(sequence.number, error)
            else:
                if token.finish is None:
                    self._tell(sequence.number, live, token)
                else:
                    self._end(sequence.number, token)
            row += 1

    def _added(self, sequence: Sequence, token: Token) -> Token:
        """Put a token behind its sequence; it then knows whether that ends."""
        assert token.id is not None
        cached = 0 if sequence.generated else sequence.cached or 0
        sequence.ids.append(token.id)
        self.statistics.generated += 1
        self.statistics.cached += cached
        return token._replace(finish=self._finish(sequence, token.id), cached=cached)

    def _finish(self, sequence: Sequence, token: int) -> FinishReason | None:
        request = sequence.request
        if token in request.end_ids:
            return "end"
        if token in request.stop_ids or (request.stops is not None and request.stops(token)):
            return "stop"
        full = len(sequence.ids) >= self._longest
        return "length" if sequence.left <= 0 or full else None

    def _fail(self, number: int, error: Exception) -> None:
        self._end(number, Token(None, "failed", error=f"{type(error).__name__}: {error}"))

    def _end(self, number: int, token: Token) -> None:
        live = self._live[number]
        self.scheduler.finish(live.sequence)
        del self._live[number]
        self._tell(number, live, token)

    def _tell(self, number: int, live: _Live, token: Token) -> None:
        """Hand a token on; a listener that raises has heard its last one."""
        try:
            live.hear(token)
        except Exception:
            log.exception("The listener of a request failed; the request is cancelled.")
            self.cancel(number)


_STARTED: WeakSet[Engine] = WeakSet()


@atexit.register
def _stop_all() -> None:
    """Computing while the interpreter goes away would abort the process."""
    for engine in list(_STARTED):
        engine.stop()


def _part(work: Work) -> Part:
    sequence, first = work.sequence, work.sequence.computed
    ids = sequence.ids[first : first + work.count]
    return Part(ids, first, work.context, work.own, work.samples)
