"""The decoder that is trained: loaded, taught new tags, wrapped in LoRA, saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from os.path import expanduser
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from apr_agents.backends import BUNDLED
from apr_agents.backends.local import load_decoder
from apr_agents.errors import MissingExtra
from apr_agents.protocols.base import TextProtocol
from apr_agents.protocols.tags import TagProtocol
from apr_agents.training.forward import choose_attention
from apr_agents.training.runs import inference_copy


class Policy(NamedTuple):
    """What is trained: a model, and the tokenizer with which it reads and writes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def save(self, directory: Path, *, most_threads: int | None = None) -> None:
        """Write what `local:DIRECTORY` loads, adapters merged into the weights.

        The weights are saved in the precision that the model's configuration names.

        Args:
            most_threads: the largest thread budget that it now was trained to read.
        """
        saved: Any = inference_copy(self.model)
        saved.to(saved.config.dtype or saved.dtype)
        if most_threads is not None:
            before = getattr(saved.config, "apr_most_threads", 0)
            saved.config.update({"apr_most_threads": max(before, most_threads)})
        saved.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def load(source: str, *, lora: int = 0, tags: Iterable[str] = ()) -> Policy:
    """Load a decoder that is to be trained, on the device it is to be trained on.

    Args:
        source: ``"bundled"`` or ``"local:DIRECTORY_OR_HUB_ID"``, as for an agent.
        lora: rank of the adapters on all linear layers; 0 trains the weights themselves.
        tags: texts that are to be one token each.

    Raises:
        UnknownModel: there is no such model.
        UnsupportedModel: not all of its layers are attention.
        MissingExtra: ``lora`` needs peft.
    """
    place = str(BUNDLED) if source == "bundled" else expanduser(source.removeprefix("local:"))
    # Weights that are trained are in float32; adapters are in any case.
    model, tokenizer = load_decoder(place, None if lora else "float32")
    # That of the weights it was loaded from; in it they are saved again.
    model.config.dtype = AutoConfig.from_pretrained(place).dtype
    added = add_tags(model, tokenizer, tags)
    if lora:
        model = _with_adapters(model, rank=lora, new_tokens=added)
    choose_attention(model)
    return Policy(model.train(), tokenizer)


def tags_of(protocol: TextProtocol) -> tuple[str, ...]:
    """The texts of a protocol that a model should write as one token each."""
    if not isinstance(protocol, TagProtocol):
        return protocol.stops
    return tuple(tag for name in protocol.tags.names for tag in (f"<{name}>", f"</{name}>"))


def add_tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tags: Iterable[str]
) -> list[int]:
    """Make each tag one token, and tell which are new.

    A new token starts as the mean of the tokens that it was written with, both where it is read
    and where it is predicted: the model goes on understanding it as it did before.
    """
    pieces = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in tags}
    new = {tag: ids for tag, ids in pieces.items() if len(ids) > 1}
    # Not special: they are part of the text, and only messages have theirs broken.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in new])
    if len(tokenizer) > len(_weight(model.get_input_embeddings())):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(table): table for table in map(_weight, _embeddings(model))}  # often one
    with torch.no_grad():
        for tag, ids in new.items():
            for table in tables.values():
                table[tokenizer.get_vocab()[tag]] = table[ids].mean(0)
    return [tokenizer.get_vocab()[tag] for tag in new]


def _embeddings(model: PreTrainedModel) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


def _with_adapters(model: PreTrainedModel, *, rank: int, new_tokens: list[int]) -> PreTrainedModel:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("train", "peft") from error
    names = {id(module): name for name, module in model.named_modules()}
    tied = _weight(model.get_input_embeddings()) is _weight(model.get_output_embeddings())
    trained = _embeddings(model)[: 1 if tied else 2]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        # Of the embeddings, only those of new tokens are trained.
        trainable_token_indices={names[id(each)]: new_tokens for each in trained if new_tokens}
        or None,
    )
    with warnings.catch_warnings():  # peft asks by a name that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = get_peft_model(model, config)
    return wrapped  # type: ignore[no-any-return]
