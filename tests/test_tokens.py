"""Text out of tokens, however it is cut, and the stops in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from apr_agents.tokens import (
    Detokenizer,
    StopCheck,
    StopFinder,
    end_ids,
    inert,
    special_ids,
    well_formed,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BEGINNINGS = [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xED, 0xA0, 0x41, 0x20]


def byte_level() -> Tokenizer:
    """Each byte a token, many pairs of them another, and two control tokens."""
    core = Tokenizer(models.BPE({text: i for i, text in enumerate(BYTES)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    singles = [core.encode(bytes([octet]).decode("latin-1")).ids for octet in range(128)]
    assert all(len(ids) == 1 for ids in singles)
    by_byte = {octet: text for text, octet in byte_of().items()}
    vocabulary = {text: i for i, text in enumerate(BYTES)}
    merges = []
    for first in BEGINNINGS:
        for second in BEGINNINGS:
            pair = (by_byte[first], by_byte[second])
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.add_tokens([AddedToken("<tag>", normalized=False)])
    return made


def byte_of() -> dict[str, int]:
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [octet for octet in range(256) if octet not in shown]
    return {chr(octet): octet for octet in shown} | {
        chr(256 + number): octet for number, octet in enumerate(others)
    }


def sentence_pieces() -> Tokenizer:
    """Words with a space in front that the first one loses; characters without a token as bytes."""
    words = ["▁Hello", "▁world", "!", "▁"]
    vocabulary = {"<unk>": 0, **{f"<0x{octet:02X}>": octet + 1 for octet in range(256)}}
    vocabulary |= {word: 300 + number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return made


LEVEL, PIECES = byte_level(), sentence_pieces()
IDS = st.lists(
    st.one_of(
        st.integers(0, len(BYTES) - 1),
        st.integers(len(BYTES), LEVEL.get_vocab_size() - 1),
        st.sampled_from(BEGINNINGS).map(
            lambda octet: BYTES.index({o: t for t, o in byte_of().items()}[octet])
        ),
    ),
    max_size=24,
)
WORDS = st.lists(
    st.one_of(
        st.sampled_from([300, 301, 302, 303]).map(lambda token: [token]),
        st.sampled_from("é€😀\nA").map(lambda text: [octet + 1 for octet in text.encode()]),
    ),
    max_size=12,
)


def streamed(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    text = Detokenizer(tokenizer, before)
    return "".join(map(text.feed, ids)) + text.finish()


@given(IDS, st.integers(0, 24))
@settings(max_examples=300)
def test_pieces_together_are_the_text_of_all_tokens_whatever_bytes_they_are(
    ids: list[int], cut: int
) -> None:
    before = LEVEL.decode(ids[:cut], skip_special_tokens=False).removesuffix("\ufffd")
    whole = LEVEL.decode(ids, skip_special_tokens=False)
    assert before + streamed(LEVEL, ids[:cut], ids[cut:]) == whole


@given(WORDS, st.integers(0, 12))
def test_a_space_in_front_is_kept_where_a_text_goes_on(words: list[list[int]], cut: int) -> None:
    before = [token for word in words[:cut] for token in word]
    after = [token for word in words[cut:] for token in word]
    assert PIECES.decode(before) + streamed(PIECES, before, after) == PIECES.decode(before + after)


def test_characters_come_whole_and_at_once() -> None:
    text = Detokenizer(LEVEL)
    tokens = [BYTES.index({o: t for t, o in byte_of().items()}[octet]) for octet in "a€b".encode()]
    assert [text.feed(token) for token in tokens] == ["a", "", "", "€", "b"]


def test_endless_broken_bytes_are_said_all_along() -> None:
    broken = BYTES.index({o: t for t, o in byte_of().items()}[0x80])
    text = Detokenizer(LEVEL)
    pieces = [text.feed(broken) for _ in range(1000)]
    assert max(len(piece) for piece in pieces) < 10
    assert "".join(pieces) + text.finish() == "\ufffd" * 1000


def test_control_tokens_may_be_left_out() -> None:
    ids = LEVEL.encode("a<s>b<tag>c</s>").ids
    for skip, expected in ((True, "ab<tag>c"), (False, "a<s>b<tag>c</s>")):
        text = Detokenizer(LEVEL, skip_special=skip)
        assert "".join(map(text.feed, ids)) + text.finish() == expected
    assert len(special_ids(LEVEL)) == 2


def test_control_tokens_are_broken_by_a_space() -> None:
    assert inert(LEVEL)("x<s><tag></s>") == "x< s><tag>< /s>"
    assert special_ids(LEVEL).isdisjoint(LEVEL.encode(inert(LEVEL)("<s></s><<s>")).ids)


def test_end_tokens_are_collected_from_all_who_know_one() -> None:
    assert end_ids(None, 3, [3, 5], 7) == {3, 5, 7}
    assert end_ids(None) == frozenset()


def found(pieces: Sequence[str], stops: Sequence[str], included: bool) -> tuple[str, str | None]:
    finder = StopFinder(stops, included=included)
    return "".join(map(finder.feed, pieces)) + finder.finish(), finder.found


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=6),
    st.booleans(),
)
@settings(max_examples=500)
def test_the_first_complete_stop_cuts_however_the_text_is_cut_up(
    text: str, stops: list[str], cuts: list[int], included: bool
) -> None:
    # Written out: the first place at which a stop ends; of several, the longest.
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops)]
    expected, stop = text, None
    if ends:
        here = text[: ends[0]]
        stop = max((stop for stop in stops if here.endswith(stop)), key=len)
        expected = here if included else here.removesuffix(stop)
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert found(pieces, stops, included) == (expected, stop)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    finder = StopFinder(["</end>"])
    assert [finder.feed(piece) for piece in ("a <", "/en", "x", "</end", ">", "more")] == [
        "a ", "", "</enx", "", "", "",
    ]  # fmt: skip
    assert finder.found == "</end>"


def test_a_stop_is_noticed_at_its_last_token() -> None:
    check = StopCheck(Detokenizer(LEVEL), ["€b", "zz"])
    ids = LEVEL.encode("a€bc").ids
    noticed = [check(token) for token in ids]
    text = [LEVEL.decode(ids[: place + 1]) for place in range(len(ids))]
    assert noticed == ["€b" in so_far for so_far in text]


@given(st.text(st.one_of(st.characters(), st.characters(categories=["Cs"]))))
def test_halves_of_surrogate_pairs_are_question_marks_and_nothing_else_changes(text: str) -> None:
    assert well_formed(text) == "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)
