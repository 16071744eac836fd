"""The engine: one thread that computes, step by step, whatever is asked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from apr_agents.engine import attention
from apr_agents.engine.attention import Plan, Rows
from apr_agents.engine.pool import Pool
from apr_agents.engine.request import FinishReason, Generate, Token
from apr_agents.engine.sampler import Sampler
from apr_agents.engine.scheduler import Scheduler, Sequence, Work
from apr_agents.errors import PromptTooLong, UnsupportedModel

NO_TOKEN = Token(-1)

Hear = Callable[[Token], None]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is to be.

    Attributes:
        cache_tokens: tokens whose keys and values are kept at most.
        most_running: sequences that compute at the same time.
        most_tokens: prompt tokens that one step computes.
    """

    cache_tokens: int = 32768
    most_running: int = 256
    most_tokens: int = 512


@dataclass
class Statistics:
    """What an engine has done so far.

    Attributes:
        prefilled: prompt tokens computed.
        generated: tokens generated.
        cached: prompt tokens that did not have to be computed.
    """

    prefilled: int = 0
    generated: int = 0
    cached: int = 0


class Engine:
    """Runs requests on a Hugging Face decoder, forks over one copy of their common prefix.

    Args:
        model: a decoder on its device, in its precision. From then on it belongs to the engine.

    Raises:
        UnsupportedModel: its attention cannot be replaced, or gives other results then.
    """

    def __init__(self, model: PreTrainedModel, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.model = model.eval()
        self.statistics = Statistics()
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        self.pool = Pool(
            self.options.cache_tokens,
            layers=config.num_hidden_layers,
            heads=heads,
            head_dim=head_dim,
            dtype=model.dtype,
            device=model.device,
        )
        self.scheduler = Scheduler(
            self.pool,
            most_running=self.options.most_running,
            most_tokens=self.options.most_tokens,
        )
        _replace_attention(model, self.pool)
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._asked: list[tuple[int, Generate, Hear]] = []
        self._cancelled: set[int] = set()
        self._live: dict[int, tuple[Sequence, Sampler, Hear]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    # --- what others call, from any thread -------------------------------------

    def submit(self, request: Generate, hear: Hear) -> int:
        """Ask; ``hear`` gets each token from the engine's thread, the last with a finish.

        Raises:
            PromptTooLong: the prompt leaves no room in the model's context or the cache.
        """
        longest = min(self.context_length or self.pool.slots, self.pool.slots)
        if len(request.ids) >= longest:
            raise PromptTooLong(len(request.ids), longest)
        with self._changed:
            number = next(self._numbers)
            self._asked.append((number, request, hear))
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name="apr-engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        """End a request before its next step; it then hears a last token, ``cancelled``."""
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify()

    def stop(self) -> None:
        """End all requests and the thread. `submit` starts it again."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run and requests that wait."""
        with self._changed:
            waiting = len(self.scheduler.waiting) + len(self._asked)
            return len(self.scheduler.running), waiting

    # --- the thread --------------------------------------------------------------

    def _run(self) -> None:
        while self._take_orders():
            work, impossible = self.scheduler.next()
            for sequence in impossible:
                self._fail(sequence, "The cache is too small for this request.")
            if not work:
                continue
            try:
                logits = self._compute(work)
                self._go_on(work, logits)
            except Exception as error:
                for sequence in [*self.scheduler.running]:
                    self._fail(sequence, f"{type(error).__name__}: {error}")

    def _take_orders(self) -> bool:
        """New requests and cancellations; waits while there is nothing to do."""
        with self._changed:
            while not (self._asked or self._cancelled or self._live or self._stopping):
                self._changed.wait()
            asked, self._asked = self._asked, []
            cancelled, self._cancelled = self._cancelled, set()
            stopping = self._stopping
            if stopping:
                self._thread = None
        for number, request, hear in asked:
            self._live[number] = (self.scheduler.add(request), Sampler(request), hear)
        for number in list(self._live) if stopping else cancelled & set(self._live):
            self._end(number, "cancelled")
        return not stopping

    @torch.inference_mode()
    def _compute(self, work: list[Work]) -> torch.Tensor | None:
        """Logits ``NV`` for the work that is followed by a token; ``None`` if none is."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[Rows] = []
        last: list[int] = []
        for part in work:
            sequence, first = part.sequence, part.sequence.computed
            rows.append(Rows(len(ids), part.count, part.context, part.own))
            ids += sequence.ids[first : first + part.count]
            positions += range(first, first + part.count)
            for run in part.own:
                slots += range(run.start, run.end)
            if part.samples:
                last.append(len(ids) - 1)
        device = self.model.device
        plan = Plan(self.pool, rows, slots, device)
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(last or [0], device=device),
            plan=plan,
        )
        return output.logits[0] if last else None

    def _go_on(self, work: list[Work], logits: torch.Tensor | None) -> None:
        """Take what was computed, choose the next tokens and tell them."""
        numbers = {id(sequence): number for number, (sequence, _, _) in self._live.items()}
        likeliest = logits.argmax(-1).tolist() if logits is not None else []
        row = 0
        for part in work:
            sequence = part.sequence
            prompt = max(0, min(part.count, len(sequence.request.ids) - sequence.computed))
            self.statistics.prefilled += part.count if part.count > 1 else prompt
            samples = part.samples
            self.scheduler.computed(part)
            if not samples:
                continue
            number = numbers[id(sequence)]
            _, sampler, hear = self._live[number]
            if sampler.is_plain:
                token = Token(likeliest[row])
            else:
                assert logits is not None
                token = sampler.choose(logits[row], sequence.ids)
            row += 1
            if not sequence.generated:
                cached = sequence.cached or 0
                self.statistics.cached += cached
                token = token._replace(cached=cached)
            sequence.ids.append(token.id)
            self.statistics.generated += 1
            finish = self._finish(sequence, token.id)
            if finish is None:
                hear(token)
            else:
                self._end(number, finish, token)

    def _finish(self, sequence: Sequence, token: int) -> FinishReason | None:
        request = sequence.request
        if token in request.end_ids:
            return "end"
        if token in request.stop_ids or (request.stops is not None and request.stops(token)):
            return "stop"
        full = self.context_length is not None and len(sequence.ids) >= self.context_length
        return "length" if sequence.left <= 0 or full else None

    def _end(self, number: int, finish: FinishReason, token: Token = NO_TOKEN) -> None:
        sequence, _, hear = self._live.pop(number)
        self.scheduler.finish(sequence)
        hear(token._replace(finish=finish))

    def _fail(self, sequence: Sequence, error: str) -> None:
        number = next(n for n, (other, _, _) in self._live.items() if other is sequence)
        self._end(number, "failed", Token(-1, error=error))


@torch.inference_mode()
def _replace_attention(model: PreTrainedModel, pool: Pool) -> None:
    """Have ``model`` attend through the pool, and see that it gives the results it gave before."""
    attention.register()
    ids = torch.arange(1, 13, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        if model.config._attn_implementation == attention.NAME:  # another engine had it
            model.set_attn_implementation("sdpa")
        expected = model(input_ids=ids, use_cache=False).logits
        model.set_attn_implementation(attention.NAME)
        run = pool.take(ids.shape[1])
        assert run is not None
        rows = [Rows(0, run.length, [], [run])]
        plan = Plan(pool, rows, list(range(run.start, run.end)), model.device)
        places = torch.arange(run.length, device=model.device)[None]
        found = model(input_ids=ids, position_ids=places, use_cache=False, plan=plan).logits
        pool.give_back(run)
    except Exception as error:
        raise UnsupportedModel(type(model).__name__, f"{type(error).__name__}: {error}") from error
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    spread = expected.float().std().clamp_min(1e-6)
    if not ((found - expected).float().abs().max() / spread < tolerance):
        raise UnsupportedModel(type(model).__name__, "its attention does something of its own")
