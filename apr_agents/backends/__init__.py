"""What completes text. `resolve` turns a model string into a backend."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from langchain_core.language_models import BaseChatModel

from apr_agents.backends.base import Backend
from apr_agents.backends.chat import ChatBackend
from apr_agents.errors import MissingExtra, UnknownModel

BUNDLED = Path(__file__).parents[1] / "bundled"


def resolve(model: str | Backend | BaseChatModel) -> Backend | ChatBackend:
    """The backend that ``model`` names; a backend is returned as it is.

    ``"bundled"`` is the small arithmetic model that ships with this package,
    ``"local:DIRECTORY_OR_HUB_ID"`` any Hugging Face decoder, and every other string a chat
    model for LangChain's ``init_chat_model``. The same string gives the same backend again,
    so that agents share one copy of the weights.

    Raises:
        UnknownModel: the string leads to no model.
        MissingExtra: the model needs packages that are not installed.
    """
    if isinstance(model, BaseChatModel):
        return ChatBackend(model)
    return model if isinstance(model, Backend) else _load(model)


@lru_cache(maxsize=8)
def _load(model: str) -> Backend | ChatBackend:
    kind, _, source = model.partition(":")
    if model == "bundled" or (kind == "local" and source):
        from apr_agents.backends.local import LocalBackend

        if model == "bundled":
            return LocalBackend.load(BUNDLED, name=model, cpu_threads=1)
        return LocalBackend.load(source, name=model)
    if not source:
        raise UnknownModel(model, "the name has no form known here")
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingExtra("chat", "langchain") from error
    try:
        return ChatBackend(init_chat_model(model))
    except (ImportError, ValueError) as error:
        raise UnknownModel(model, str(error).splitlines()[0].rstrip(".")) from error
