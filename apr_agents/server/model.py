"""The model that is served: texts and conversations become token ids. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from langchain_core.messages import convert_to_messages

from apr_agents import json_calls
from apr_agents.errors import InvalidGrammar, MissingExtra
from apr_agents.server.refusals import invalid
from apr_agents.server.schemas import Message, Tool
from apr_agents.tokens import inert, well_formed

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from apr_agents.engine.engine import Engine
    from apr_agents.engine.request import Constraint


@dataclass(frozen=True)
class Model:
    """One model under one name.

    Attributes:
        name: what clients call it.
        engine: runs it.
        tokenizer: its (fast) tokenizer.
        ends: tokens with which it ends; see `apr_agents.tokens.end_ids`.
    """

    name: str
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]

    def __post_init__(self) -> None:
        # A tokenizer that was saved with them would cut prompts off, or fill them up.
        self.fast.no_truncation()
        self.fast.no_padding()

    @property
    def fast(self) -> Tokenizer:
        fast: Tokenizer = self.tokenizer.backend_tokenizer
        return fast

    @cached_property
    def room(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        slots = self.engine.options.cache_tokens
        return min(self.engine.context_length or slots, slots)

    # --- prompts -----------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The tokens of a text.

        Raises:
            Refusal: there are none.
        """
        text = well_formed(text)
        ids: list[int] = self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        if not ids:
            raise invalid("The prompt has no tokens.", "prompt")
        return ids

    def answer_length(self, prompt: Sequence[int], wanted: int | None, param: str) -> int:
        """How many tokens an answer may have: ``wanted``, or up to the end of the context.

        Raises:
            Refusal: that is more than fits behind the prompt.
        """
        total = len(prompt) + (wanted or 1)
        if total > self.room:
            answer = f"{wanted} in the completion" if wanted else "at least 1 in the completion"
            raise invalid(
                f"This model's maximum context length is {self.room} tokens. However, you "
                f"requested {total} tokens ({len(prompt)} in the {param}, {answer}). "
                f"Please reduce the length of the {param} or the completion.",
                param,
                "context_length_exceeded",
            )
        return wanted or self.room - len(prompt)

    # --- conversations -----------------------------------------------------------------

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        return "tools" in str(self.tokenizer.chat_template)

    def converse(
        self, messages: Sequence[Message], tools: Sequence[Tool], choice: str
    ) -> list[int]:
        """The tokens of a conversation, ready to be continued.

        The model's control tokens are made inert inside it. Where the template does not take
        tools, the system message describes them.

        Args:
            choice: as `json_calls.instructions` has it.

        Raises:
            Refusal: the template does not take these messages, or there is none.
        """
        if self.tokenizer.chat_template is None:
            raise invalid("This model has no chat template: use /v1/completions.", "messages")
        offered: list[Any] = [tool.model_dump(exclude_none=True) for tool in tools]
        if json_calls.is_deep(offered):
            raise invalid("The schema of a tool is nested too deeply.", "tools")
        turns = [_turn(index, message) for index, message in enumerate(messages)]
        offered, turns = self._inert(offered), self._inert(turns)
        try:
            if not self.takes_tools:
                turns, offered = _written_out(turns, offered, choice), []
            text = self.tokenizer.apply_chat_template(
                turns, tools=offered or None, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template makes of what it does not expect
            raise invalid(
                f"The model's chat template does not take these messages: {error}", "messages"
            ) from error
        return self.encode(str(text), add_special_tokens=False)

    @cached_property
    def _break(self) -> Any:
        return inert(self.fast)

    def _inert(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._inert(key): self._inert(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._inert(each) for each in value]
        return self._break(value) if isinstance(value, str) else value

    # --- constraints -------------------------------------------------------------------

    def constraint(self, schema: dict[str, Any], param: str) -> Constraint:
        """What keeps one answer to a JSON schema.

        Raises:
            Refusal: nothing can, and why.
        """
        try:
            from apr_agents.engine import grammar

            constraint: Constraint = grammar.json_schema(self.tokenizer, schema)
        except InvalidGrammar as error:
            raise invalid(str(error), param) from error
        except (MissingExtra, ValueError, TypeError, RecursionError) as error:
            raise invalid(f"This schema cannot be used: {error}", param) from error
        return constraint


def _turn(index: int, message: Message) -> dict[str, Any]:
    """A message as chat templates have it."""
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, Any] = {"role": role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = []
        for number, call in enumerate(message.tool_calls):
            place = f"messages.{index}.tool_calls.{number}.function.arguments"
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise invalid(f"'{place}' is not valid JSON.", place) from error
            if not isinstance(arguments, dict) or json_calls.is_deep(arguments):
                raise invalid(f"'{place}' is not an object, or is nested too deeply.", place)
            function = {"name": call.function.name, "arguments": arguments}
            turn["tool_calls"].append({"id": call.id, "type": "function", "function": function})
    return turn


def _written_out(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]], choice: str
) -> list[dict[str, Any]]:
    """Turns for a template that knows of no tools: tools, calls and results as text."""
    if not tools and not any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        return turns
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    system = json_calls.instructions(tools, choice) if tools else ""
    roles = {"human": "user", "ai": "assistant"}
    return [
        {"role": roles.get(message.type, message.type), "content": message.text}
        for message in json_calls.plain(convert_to_messages(turns), system)
    ]
