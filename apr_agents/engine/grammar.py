"""Constraints on what a model may say: a JSON schema, a regular expression, a Lark grammar.

llguidance does the work (extra ``[serve]``). The only module here that knows text. A request
under a constraint ends with the tokenizer's end token, which belongs into its ``end_ids``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor

from apr_agents.errors import InvalidGrammar, MissingExtra

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

WHITE_SPACE = "[ ]?"
"""Between the parts of JSON. Without a bound, a model can fill its whole answer with it."""

_known: WeakKeyDictionary[PreTrainedTokenizerBase, LLTokenizer] = WeakKeyDictionary()


def json_schema(tokenizer: PreTrainedTokenizerBase, schema: dict[str, Any]) -> Grammar:
    """What keeps one answer to a JSON schema; ``{}`` for any JSON.

    Raises:
        InvalidGrammar: it is no JSON schema, or asks for what cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    guide = _guide(tokenizer)
    overrides: Any = {"whitespace_pattern": WHITE_SPACE}
    try:
        text = _matcher().grammar_from_json_schema(schema, overrides=overrides)
    except (TypeError, ValueError) as error:
        raise InvalidGrammar("JSON schema", str(error)) from error
    return _grammar("JSON schema", guide, text)


def regex(tokenizer: PreTrainedTokenizerBase, pattern: str) -> Grammar:
    """What makes one answer match a regular expression from its first to its last character.

    Raises:
        InvalidGrammar: it is none, or looks around, refers back or the like.
        MissingExtra: llguidance is not installed.
    """
    return _grammar("regular expression", _guide(tokenizer), _matcher().grammar_from_regex(pattern))


def lark(tokenizer: PreTrainedTokenizerBase, grammar: str) -> Grammar:
    """What keeps one answer to a context-free grammar in llguidance's variant of Lark.

    Control tokens of the model are written without quotes, such as ``<Parallel>``.

    Raises:
        InvalidGrammar: it is none.
        MissingExtra: llguidance is not installed.
    """
    return _grammar("Lark grammar", _guide(tokenizer), _matcher().grammar_from_lark(grammar))


class Grammar:
    """A `Constraint`: what one request has said so far, and what may come next."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def restrict(self, logits_V: Tensor) -> None:
        mask = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        allowed = torch.from_numpy(numpy.unpackbits(mask, bitorder="little")).bool()
        known = min(len(allowed), len(logits_V))  # models often have more rows than tokens
        logits_V[:known].masked_fill_(~allowed[:known], float("-inf"))
        logits_V[known:] = float("-inf")

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ValueError(_first_line(self._matcher.get_error()))


class _Words:
    """For llguidance, a tokenizer of a kind that it does not know: every token is its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._fast = tokenizer.backend_tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        size = self._fast.get_vocab_size(with_added_tokens=True)
        added = self._fast.get_added_tokens_decoder()
        self.special_token_ids = [i for i, token in added.items() if token.special]
        texts = (self._fast.decode([i], skip_special_tokens=False) for i in range(size))
        self.tokens = [text.encode() for text in texts]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids


def _matcher() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingExtra("serve", "llguidance") from error
    return LLMatcher


def _guide(tokenizer: PreTrainedTokenizerBase) -> LLTokenizer:
    """llguidance's view of a tokenizer. Making it takes about a second for a large one."""
    guide = _known.get(tokenizer)
    if guide is None:
        _matcher()
        from llguidance import LLTokenizer, TokenizerWrapper
        from llguidance.hf import from_tokenizer

        try:
            guide = from_tokenizer(tokenizer)  # type: ignore[arg-type]
        except ValueError:
            guide = LLTokenizer(TokenizerWrapper(_Words(tokenizer)))
        _known[tokenizer] = guide
    return guide


def _grammar(kind: str, guide: LLTokenizer, text: str) -> Grammar:
    matcher = _matcher()(guide, text, log_level=0)
    if matcher.is_error():
        raise InvalidGrammar(kind, _first_line(matcher.get_error()))
    return Grammar(matcher)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".")
