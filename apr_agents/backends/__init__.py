"""What completes text. `resolve` turns a model string into a backend."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from apr_agents.backends.base import Backend
from apr_agents.errors import UnknownModel

BUNDLED = Path(__file__).parents[1] / "bundled"


def resolve(model: str | Backend) -> Backend:
    """The backend that ``model`` names; a backend is returned as it is.

    ``"bundled"`` is the small arithmetic model that ships with this package,
    ``"local:DIRECTORY_OR_HUB_ID"`` any Hugging Face decoder. The same string gives the
    same backend again, so that agents share one copy of the weights.

    Raises:
        UnknownModel: the string leads to no model.
        MissingExtra: the model needs packages that are not installed.
    """
    return model if isinstance(model, Backend) else _load(model)


@lru_cache(maxsize=8)
def _load(model: str) -> Backend:
    from apr_agents.backends.local import LocalBackend

    kind, _, source = model.partition(":")
    if model == "bundled":
        return LocalBackend.load(BUNDLED, name=model, cpu_threads=1)
    if kind == "local" and source:
        return LocalBackend.load(source, name=model)
    raise UnknownModel(model, "the name has no form known here")
