"""What completes text. `resolve` turns a model string into a backend."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from pydantic import ValidationError

from apr_agents.backends.base import Backend
from apr_agents.backends.chat import ChatBackend
from apr_agents.errors import MissingExtra, ModelNotReady, UnknownModel

BUNDLED = Path(__file__).parents[1] / "bundled"


def resolve(model: str | Backend | BaseChatModel) -> Backend | ChatBackend:
    """The backend that ``model`` names; a backend is returned as it is.

    ``"bundled"`` is the small arithmetic model that ships with this package,
    ``"local:DIRECTORY_OR_HUB_ID"`` any Hugging Face decoder, ``"completions:URL#MODEL"`` a
    model of a completions server (without ``#MODEL``, its first one), and every other string
    a chat model for LangChain's ``init_chat_model``. The same string gives the same model
    again, so that agents share one copy of the weights.

    Raises:
        UnknownModel: the string leads to no model.
        ModelNotReady: a chat model's provider lacks a package or a key.
        MissingExtra: the model needs packages that are not installed.
    """
    found = _load(model) if isinstance(model, str) else model
    # Each agent its own: tools of two agents may have the same name.
    return ChatBackend(found) if isinstance(found, BaseChatModel) else found


@lru_cache(maxsize=8)
def _load(model: str) -> Backend | BaseChatModel:
    kind, _, source = model.partition(":")
    if model == "bundled" or (kind == "local" and source):
        from apr_agents.backends.local import LocalBackend

        if model == "bundled":
            return LocalBackend.load(BUNDLED, name=model, cpu_threads=1)
        return LocalBackend.load(source, name=model)
    if kind == "completions" and source:
        from apr_agents.backends.completions import CompletionsBackend

        return CompletionsBackend.of(source)
    if not source:
        raise UnknownModel(model, "the name has no form known here")
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingExtra("chat", "langchain") from error
    try:
        return init_chat_model(model)
    except Exception as error:
        why = _one_line(error)
        if why.startswith("Unable to infer model provider"):
            raise UnknownModel(model, f"no provider is called {kind!r}") from error
        raise ModelNotReady(model, why) from error


def _one_line(error: Exception) -> str:
    """What a provider's package says about a model that it cannot set up."""
    if isinstance(error, ValidationError):
        said = ", ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
    else:
        said = (str(error) or type(error).__name__).splitlines()[0]
    return said.rstrip(".")
