"""What LangChain's tracers see of threads: each as a run, and of whom every call is.

Where nothing listens, it costs nothing. Tracers group by parents, names, tags and metadata:
a thread's run is named ``thread 0.2``, and its calls have the tag ``thread:0.2`` and the metadata
``apr_thread: 0.2``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeGuard

from langchain_core.outputs import Generation, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    patch_config,
    var_child_runnable_config,
)

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.graph.state import Thread
from apr_agents.types import ThreadResult


def marks(config: RunnableConfig | None, thread_id: str) -> RunnableConfig:
    """The part of a call's configuration that says whose it is."""
    metadata = (config or {}).get("metadata", {})
    return {"metadata": {**metadata, "apr_thread": thread_id}, "tags": [f"thread:{thread_id}"]}


def is_heard(config: RunnableConfig | None) -> TypeGuard[RunnableConfig]:
    """Whether anyone listens to what runs with ``config``."""
    callbacks = config.get("callbacks") if config else None
    return bool(getattr(callbacks, "handlers", callbacks))


async def live(
    thread: Thread,
    config: RunnableConfig,
    life: Callable[[RunnableConfig], Awaitable[ThreadResult]],
) -> ThreadResult:
    """A thread's life as a run, which is the parent of all runs within."""
    manager, own = get_async_callback_manager_for_config(config), marks(None, thread.id)
    manager.add_tags(own["tags"], inherit=False)
    manager.add_metadata(own["metadata"], inherit=False)
    asked = {"outline": thread.outline.text if thread.outline else ""}
    run = await manager.on_chain_start(None, asked, name=f"thread {thread.id}")
    inner = patch_config(config, callbacks=run.get_child())
    context = var_child_runnable_config.set(inner)
    try:
        result = await life(inner)
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    finally:
        var_child_runnable_config.reset(context)
    await run.on_chain_end(result.model_dump(include={"status", "reason", "conclusion", "tokens"}))
    return result


def stream(
    backend: Backend, request: Request, config: RunnableConfig | None
) -> AsyncGenerator[Delta, None]:
    """The backend's stream, as the run of a model that completes texts."""
    config, deltas = ensure_config(config), backend.stream(request)
    return _told(deltas, backend.name, request, config) if is_heard(config) else deltas


async def _told(
    deltas: AsyncGenerator[Delta, None], model: str, request: Request, config: RunnableConfig
) -> AsyncGenerator[Delta, None]:
    manager = get_async_callback_manager_for_config(config)
    manager.add_metadata({"ls_model_name": model, "ls_model_type": "llm"}, inherit=False)
    options = {"max_tokens": request.max_tokens, "stop": list(request.stops)}
    (run,) = await manager.on_llm_start(
        {"name": model}, [request.prompt], invocation_params=options
    )
    text, tokens, prompt_tokens = "", 0, 0
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                text, tokens = text + delta.text, tokens + delta.tokens
                prompt_tokens += delta.prompt_tokens
                if delta.text:
                    await run.on_llm_new_token(delta.text)
                yield delta
    except GeneratorExit:  # the protocol has read a decision
        pass
    except BaseException as error:
        await run.on_llm_error(error)
        raise
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    generated = [[Generation(text=text)]]
    await run.on_llm_end(LLMResult(generations=generated, llm_output={"token_usage": usage}))
