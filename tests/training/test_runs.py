"""The tokens of runs: exactly those that the model read and wrote, on its present weights."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.local import LocalBackend
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.training.forward import target_logprobs
from apr_agents.training.runs import Recorder, Run, rehearse, serving
from apr_agents.training.scripts import Rules
from apr_agents.training.trie import collate, pack
from tests.training.toy import (
    CHAIN,
    TOKENIZER,
    WIDE,
    fresh_model,
    script,
    undecided,
    word_tokenizer,
)


def runs(backend: object, *names: str, temperature: float = 1.0) -> list[Run]:
    recorder = Recorder(backend, TOKENIZER, temperature=temperature, max_tokens=100)  # type: ignore[arg-type]

    async def asked() -> list[Run]:
        return list(
            await asyncio.gather(*(recorder.run("1", Rules(3), name=name) for name in names))
        )

    return asyncio.run(asked())


def test_what_is_noted_is_what_was_read_and_written() -> None:
    policy = undecided()
    with serving(*policy, temperature=1.0) as backend:
        for run in runs(backend, *"abcdef"):
            generated = [
                step
                for thread in run.trajectory.root.walk()
                for step in thread.steps
                if step.kind == "call"
            ]
            assert [len(pair.completion) for pair in run.pairs] == [s.tokens for s in generated]
            assert [len(pair.context) for pair in run.pairs] == [s.prompt_tokens for s in generated]
            for pair, step in zip(run.pairs, generated, strict=True):
                written = TOKENIZER.decode(pair.completion).removesuffix("<eos>")
                assert written.startswith(step.text)


def test_the_name_of_a_run_decides_its_random_numbers() -> None:
    with serving(*undecided(), temperature=1.0) as backend:
        first, again, *others = runs(backend, *"aabcdefgh")
    assert first.pairs == again.pairs
    assert any(other.pairs != first.pairs for other in others)


def test_a_model_is_served_with_the_weights_that_it_has_now() -> None:
    policy = undecided()
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}

    def greedy() -> list[list[int]]:
        with serving(*policy, temperature=0.0) as backend:
            [run] = runs(backend, "a", temperature=0.0)
        return [list(pair.completion) for pair in run.pairs]

    first = greedy()
    torch.testing.assert_close(policy.model.state_dict(), before)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.5)
    assert greedy() != first


def test_the_engine_and_the_packed_trie_give_the_same_probabilities() -> None:
    policy = undecided()
    with serving(*policy, temperature=1.0) as backend:
        assert isinstance(backend, LocalBackend)

        async def logprob(prompt: str) -> tuple[list[int], float]:
            ids, total = [], 0.0
            request = Request(prompt=prompt, max_tokens=40, logprobs=True, stops=("</Outlines>",))
            async for delta in backend.stream(request):
                ids += delta.ids
                total += delta.logprob or 0.0
            return ids, total

        [run] = runs(backend, "a")
        pair = run.pairs[0]
        ids, told = asyncio.run(logprob(run.trajectory.question))
    batch = collate([pack([pair._replace(completion=ids)])])
    with torch.no_grad():
        found = target_logprobs(policy.model, batch).sum()
    assert float(found) == pytest.approx(told, abs=1e-3)


# --- rehearsals --------------------------------------------------------------------------------


def test_a_rehearsed_run_reads_what_a_model_would_read() -> None:
    """The contexts are those of a local model with that tokenizer, chat template included."""
    shown = script(WIDE, split=True)
    [(run, _)] = asyncio.run(rehearse([shown], TOKENIZER))
    assert run is not None
    prompts: list[str] = []
    backend = LocalBackend(fresh_model(hidden=16, layers=1), TOKENIZER)

    def say(request: Request) -> str:
        prompts.append(request.prompt)
        thread, _, step = request.key.partition("/")
        return shown.calls[thread][int(step) // 2]

    stand_in = ScriptedBackend(say)
    stand_in.render = backend.render  # type: ignore[method-assign]
    agent = create_parallel_agent(stand_in, limits=Limits(max_threads=3))
    asyncio.run(agent.ainvoke({"messages": [("user", shown.question)]}))
    met = sorted(backend.encode(prompt) for prompt in prompts)
    assert sorted(list(pair.context) for pair in run.pairs) == met
    ends = [TOKENIZER.decode(pair.completion[-1:]) for pair in run.pairs]
    assert ends == ["</Outlines>", "<eos>", "</Thread>", "</Thread>", "</Thread>"]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, word_tokenizer()], ids=["tags", "words"])
def test_tokens_of_a_text_follow_those_of_its_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    for shown in (script(WIDE, split=True), script(CHAIN, split=False)):
        [(run, fault)] = asyncio.run(rehearse([shown], tokenizer))
        assert fault is None
        assert run is not None
        written = [text for texts in shown.calls.values() for text in texts]
        for pair, text in zip(run.pairs, written, strict=True):
            ids = [i for i in pair.completion if i != tokenizer.eos_token_id]
            whole = tokenizer.decode([*pair.context, *ids])
            assert whole == tokenizer.decode(pair.context) + tokenizer.decode(ids)
            assert "".join(tokenizer.decode(ids).split()) == "".join(text.split())
