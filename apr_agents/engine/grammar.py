"""Constraints on what a model may say: a JSON schema, a regular expression, a Lark grammar.

llguidance does the work (extra ``[serve]``). The only module here that knows text. A request
under a constraint ends with the tokenizer's end token, which belongs into its ``end_ids``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple
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

_known: WeakKeyDictionary[PreTrainedTokenizerBase, _Guide] = WeakKeyDictionary()


def json_schema(tokenizer: PreTrainedTokenizerBase, schema: dict[str, Any]) -> Grammar:
    """What keeps one answer to a JSON schema; ``{}`` for any JSON.

    Raises:
        InvalidGrammar: it is no JSON schema, or asks for what cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    kind, overrides = "JSON schema", {"whitespace_pattern": WHITE_SPACE}
    make: Any = _matcher().grammar_from_json_schema
    try:
        text = make(schema, overrides=overrides)
    except (TypeError, ValueError) as error:
        raise InvalidGrammar(kind, _in_one_line(str(error))) from error
    return _grammar(kind, tokenizer, text)


def regex(tokenizer: PreTrainedTokenizerBase, pattern: str) -> Grammar:
    """What makes one answer match a regular expression from its first to its last character.

    Raises:
        InvalidGrammar: it is none, or looks around, refers back or the like.
        MissingExtra: llguidance is not installed.
    """
    return _grammar("regular expression", tokenizer, _matcher().grammar_from_regex(pattern))


def lark(tokenizer: PreTrainedTokenizerBase, grammar: str) -> Grammar:
    """What keeps one answer to a context-free grammar in llguidance's variant of Lark.

    Control tokens of the model are written without quotes, such as ``<Parallel>``.

    Raises:
        InvalidGrammar: it is none.
        MissingExtra: llguidance is not installed.
    """
    return _grammar("Lark grammar", tokenizer, _matcher().grammar_from_lark(grammar))


class _Guide(NamedTuple):
    """llguidance's view of a tokenizer, and how many ids the tokenizer itself has."""

    tokenizer: LLTokenizer
    size: int


class Grammar:
    """A `Constraint`: what one request has said so far, and what may come next."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    def restrict(self, logits_V: Tensor) -> None:
        mask = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        allowed = torch.from_numpy(numpy.unpackbits(mask, bitorder="little")).bool()
        known = min(self._size, len(logits_V))  # models often have more rows than tokens
        logits_V[:known].masked_fill_(~allowed[:known], float("-inf"))
        logits_V[known:] = float("-inf")

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ValueError(_in_one_line(self._matcher.get_error()))


class _Written:
    """For llguidance, a tokenizer that it knows, but to which a control token is text like any.

    llguidance asks it how a text that must come is to be written. The tokenizer itself would
    write it with control tokens, which llguidance then refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, known: LLTokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        ids = range(known.vocab_size)
        self.tokens = [known.decode_bytes([i]) for i in ids]
        self.special_token_ids = [i for i in ids if known.is_special_token(i)]
        self._fast = copy.copy(tokenizer.backend_tokenizer)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True

    def __call__(self, text: bytes) -> list[int]:
        written = self._fast.encode(text.decode(errors="replace"), add_special_tokens=False)
        ids: list[int] = written.ids
        return ids


class _Words:
    """For llguidance, a tokenizer of a kind that it does not know: every token is its text.

    llguidance expects that every byte can be a token, so those that are not become tokens
    behind the others. A `Grammar` never lets them come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        fast = tokenizer.backend_tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        added = fast.get_added_tokens_decoder()
        self.special_token_ids = [i for i, token in added.items() if token.special]
        texts = [fast.decode([i], skip_special_tokens=False) for i in range(_size(tokenizer))]
        self.tokens = [text.encode() for text in texts]
        control = {self.tokens[i] for i in self.special_token_ids}
        self.tokens += sorted({bytes([byte]) for byte in range(256)} - {*self.tokens})
        words = {word: i for i, word in enumerate(self.tokens) if word and word not in control}
        self._words = dict(sorted(words.items(), key=lambda item: -len(item[0])))

    def __call__(self, text: bytes) -> list[int]:
        """The longest tokens first. The tokenizer itself would have a token for the unknown."""
        ids, start = list[int](), 0
        while start < len(text):
            word = next(word for word in self._words if text.startswith(word, start))
            ids.append(self._words[word])
            start += len(word)
        return ids


def _matcher() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingExtra("serve", "llguidance") from error
    return LLMatcher


def _guide(tokenizer: PreTrainedTokenizerBase) -> _Guide:
    """llguidance's view of a tokenizer. Making it takes about a second for a large one."""
    guide = _known.get(tokenizer)
    if guide is None:
        _matcher()
        from llguidance import LLTokenizer, TokenizerWrapper
        from llguidance.hf import from_tokenizer

        words: _Written | _Words
        try:
            words = _Written(tokenizer, from_tokenizer(tokenizer))  # type: ignore[arg-type]
        except ValueError:
            words = _Words(tokenizer)
        made = LLTokenizer(TokenizerWrapper(words))
        guide = _known[tokenizer] = _Guide(made, _size(tokenizer))
    return guide


def _grammar(kind: str, tokenizer: PreTrainedTokenizerBase, text: str) -> Grammar:
    guide = _guide(tokenizer)
    matcher = _matcher()(guide.tokenizer, text, log_level=0)
    if matcher.is_error():
        raise InvalidGrammar(kind, _in_one_line(matcher.get_error()))
    return Grammar(matcher, guide.size)


def _size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids of a tokenizer: one more than its last."""
    ids: dict[str, int] = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    return 1 + max(ids.values())


def _in_one_line(text: str) -> str:
    """The first line; where it only announces what is wrong, with the last one, which says it."""
    first, *others = text.strip().splitlines() or [""]
    return (f"{first} {others[-1]}" if others and first.endswith(":") else first).rstrip(".")
