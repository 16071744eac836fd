"""Grammars: what a random model says under one is always in its language."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jsonschema_rs
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apr_agents.engine import grammar
from apr_agents.engine.engine import Engine, EngineOptions
from apr_agents.engine.grammar import Grammar
from apr_agents.engine.request import Generate
from apr_agents.errors import InvalidGrammar, MissingExtra
from apr_agents.protocols.base import Spawn
from apr_agents.protocols.threadweaver import TAGS, ThreadWeaver
from apr_agents.training.tokenizer import build_tokenizer
from tests.engine.tiny import SHAPE, ask

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": -20, "maximum": 300},
        "kind": {"enum": ["a", "b c", None]},
        "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}},
            "additionalProperties": False,
        },
    },
    "required": ["name", "size", "kind", "parts"],
    "additionalProperties": False,
}

BLOCK = r"""
start: <Parallel> "\n" <Outlines> "\n" outline{2,3} </Outlines>
outline: <Outline> NUMBER ": " TEXT </Outline> "\n"
NUMBER: /[1-9]/
TEXT: /[a-z0-9+*]{1,12}/
"""

PLAIN_BLOCK = r"""
start: "<Parallel>" "<Outlines>" outline{2,3} "</Outlines>"
outline: "<Outline>" NUMBER ":" TEXT "</Outline>"
NUMBER: /[1-9]/
TEXT: /[0-9+*]{1,12}/
"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, a few words, and the tags as control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*alphabet, "tr", "tru", '":', "00"])}
    merges = [("t", "r"), ("tr", "u"), ('"', ":"), ("0", "0")]
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tags = [AddedToken(text, special=True) for tag in TAGS for text in (f"<{tag}>", f"</{tag}>")]
    core.add_special_tokens(tags)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


class Speaker:
    """A random model with a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        torch.manual_seed(5)
        # Models often have rows for tokens that do not exist.
        config = LlamaConfig(**{**SHAPE, "vocab_size": len(tokenizer) + 7})
        self.engine = Engine(LlamaForCausalLM(config), EngineOptions(cache_tokens=4096))

    def say(self, *constraints: Grammar, temperature: float = 1.5) -> list[str]:
        """A complete answer under each constraint."""
        end = self.tokenizer.eos_token_id
        requests = [
            Generate(
                ids=[1, 2, 3],
                max_tokens=200,
                end_ids=frozenset([end]),
                temperature=temperature,
                seed=seed,
                constraint=constraint,
            )
            for seed, constraint in enumerate(constraints)
        ]
        answers = ask(self.engine, *requests)
        assert [answer.finish for answer in answers] == ["end"] * len(constraints)
        return [self.tokenizer.decode(answer.ids[:-1]) for answer in answers]


@pytest.fixture(scope="module")
def speaker() -> Any:
    made = Speaker(byte_tokenizer())
    yield made
    made.engine.stop()


def test_answers_under_a_schema_parse_and_validate(speaker: Speaker) -> None:
    said = speaker.say(*(grammar.json_schema(speaker.tokenizer, SCHEMA) for _ in range(40)))
    validator = jsonschema_rs.validator_for(SCHEMA)
    for text in said:
        validator.validate(json.loads(text))
    assert len(set(said)) > 20


def test_the_likeliest_answer_under_a_schema_is_in_it_too(speaker: Speaker) -> None:
    constraint = grammar.json_schema(speaker.tokenizer, SCHEMA)
    (text,) = speaker.say(constraint, temperature=0)
    jsonschema_rs.validator_for(SCHEMA).validate(json.loads(text))


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[a-f]+\.", r"(yes|no), (yes|no)", r"x*y{2,5}", r"Ä[ß-ü]?"]
)
def test_answers_under_a_regular_expression_match_it(speaker: Speaker, pattern: str) -> None:
    for text in speaker.say(*(grammar.regex(speaker.tokenizer, pattern) for _ in range(10))):
        assert re.fullmatch(pattern, text)


def test_an_untrained_model_can_be_made_to_spawn_threads(speaker: Speaker) -> None:
    for text in speaker.say(*(grammar.lark(speaker.tokenizer, BLOCK) for _ in range(10))):
        parser = ThreadWeaver().parser(thread=False, written="<think>\n")
        decision = parser.feed(text)
        assert isinstance(decision, Spawn)
        assert decision.outlines
        assert all(re.fullmatch("[a-z0-9+*]+", outline.text) for outline in decision.outlines)


def test_a_tokenizer_of_another_kind_will_do() -> None:
    other = Speaker(build_tokenizer())  # words, and tags that are no control tokens
    for text in other.say(*(grammar.lark(other.tokenizer, PLAIN_BLOCK) for _ in range(10))):
        assert isinstance(ThreadWeaver().parser(thread=False, written="").feed(text), Spawn)
    other.engine.stop()


def test_what_must_come_may_look_like_a_control_token(speaker: Speaker) -> None:
    for text in ("<eos>", "a <Parallel> b</Thread>"):
        said = speaker.say(grammar.json_schema(speaker.tokenizer, {"const": text}))
        assert [json.loads(each) for each in said] == [text]


def test_constraints_of_one_kind_do_not_know_of_each_other(speaker: Speaker) -> None:
    first, second = (grammar.regex(speaker.tokenizer, "ab") for _ in range(2))
    ids = speaker.tokenizer("ab")["input_ids"]
    first.accept(ids[0])
    logits = torch.zeros(len(speaker.tokenizer))
    second.restrict(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == ids[:1]


def test_only_the_end_comes_behind_the_end(speaker: Speaker) -> None:
    one = grammar.regex(speaker.tokenizer, "a")
    end = speaker.tokenizer.eos_token_id
    for token in (speaker.tokenizer("a")["input_ids"][0], end, end):
        logits = torch.zeros(len(speaker.tokenizer) + 100)
        one.restrict(logits)
        assert logits.isfinite().nonzero().flatten().tolist() == [token]
        one.accept(token)


def test_a_token_that_is_not_allowed_is_an_error(speaker: Speaker) -> None:
    one = grammar.regex(speaker.tokenizer, "a")
    with pytest.raises(ValueError, match=r"."):
        one.accept(speaker.tokenizer("b")["input_ids"][0])


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (grammar.json_schema, {"type": "nonsense"}),
        (grammar.json_schema, {"type": "string", "pattern": "(?=a)b"}),
        (grammar.json_schema, {"$ref": "http://elsewhere/schema"}),
        (grammar.regex, "[0-9"),
        (grammar.regex, r"(a)\1"),
        (grammar.lark, "start: missing"),
        (grammar.lark, "start: <NoSuchToken>"),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_in_one_line(
    speaker: Speaker, make: Any, wrong: Any
) -> None:
    with pytest.raises(InvalidGrammar) as caught:
        make(speaker.tokenizer, wrong)
    assert "\n" not in str(caught.value)


def test_the_missing_package_is_named(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra) as caught:
        grammar.json_schema(speaker.tokenizer, SCHEMA)
    assert (caught.value.extra, caught.value.package) == ("serve", "llguidance")
