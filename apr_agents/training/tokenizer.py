"""The bundled model's tokenizer: one token per character, one per tag; spaces are free.

A line's end is one token too, with a semicolon or without.
Parentheses of this family say one thing only, where a group ends: ``)+(`` becomes the token
``|`` and the others are dropped.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHARACTERS = "0123456789+-*|=:,?\n"
TAGS = ("think", "Parallel", "Outlines", "Outline", "Thread", "Conclusion")
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Characters of arithmetic, the protocol's tags, and ``<unk>`` for everything else.

    Spaces, tabs and parentheses carry no tokens; tags absorb the white space around them,
    line breaks included.
    """
    words = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[ \t\r]+"), ""),
            normalizers.Replace(Regex(r"\)\+\("), "|"),
            normalizers.Replace(Regex(r"[()]+"), ""),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tags = [text for tag in TAGS for text in (f"<{tag}>", f"</{tag}>")]
    core.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<pad>", "<eos>", "<unk>")]
    )
    core.add_tokens(
        [
            AddedToken(text, lstrip=True, rstrip=True, normalized=False)
            for text in [*tags, "Threads:"]
        ]
    )
    core.add_tokens([AddedToken(";\n", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
