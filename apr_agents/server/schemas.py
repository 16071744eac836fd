"""The shapes of requests and responses: OpenAI's, with some of vLLM's extensions.

A parameter that is not here is refused, as OpenAI does. Of those that are here, a few are
taken and change nothing (`_Ignored`), and a few may only have the value that changes
nothing (`Neutral`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_TOOLS = 128
LONGEST_STOP = 256
LARGEST_SEED = 2**63 - 1
LEAST_TEMPERATURE = 1e-5
"""Lower ones count as 0; they would divide the logits out of their range."""


def _neutral(value: float) -> float:
    if value != 0:
        raise ValueError("this server has no such penalty; leave it out or use repetition_penalty")
    return value


def _empty(value: dict[str, Any]) -> dict[str, Any]:
    if value:
        raise ValueError("this server takes no bias; leave it out")
    return value


Neutral: TypeAlias = Annotated[
    float, AfterValidator(_neutral), Field(json_schema_extra={"const": 0})
]
Empty: TypeAlias = Annotated[
    dict[str, Any], AfterValidator(_empty), Field(json_schema_extra={"maxProperties": 0})
]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Text: TypeAlias = str
TokenIds: TypeAlias = Annotated[list[TokenId], Field(min_length=1)]


def _is_none(value: object) -> bool:
    return value is None


class _Asked(BaseModel):
    """JSON has types of its own, so nothing is converted: ``"5"`` is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


# --- requests --------------------------------------------------------------------------


class _Ignored(_Asked):
    """What says nothing about the answer."""

    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None


class StreamOptions(_Asked):
    """What a stream is to tell beside the answer.

    Attributes:
        include_usage: the tokens, in a last chunk without choices.
        continuous_usage_stats: the tokens so far, in every chunk (vLLM's).
        include_obfuscation: changes nothing.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(_Ignored):
    """What both kinds of request have.

    Attributes:
        top_k: vLLM's: sample among this many likeliest tokens; 0 or -1 for all.
        min_p: vLLM's: sample among tokens with this share of the likeliest one's probability.
        repetition_penalty: vLLM's: divides the logits of tokens that have occurred.
        seed: choice ``i`` of a prompt has the seed ``seed + i``; without one, each request
            is random.
        ignore_eos: vLLM's: go on behind the model's own end, as benchmarks want it.
        include_stop_str_in_output: vLLM's: a stop is part of the answer.
        skip_special_tokens: vLLM's: control tokens are no part of the text.
        user: requests of one user give way to those of others; without one, each HTTP
            request is a user of its own.
    """

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED - 1, le=LARGEST_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Neutral | None = None
    presence_penalty: Neutral | None = None
    logit_bias: Empty | None = None

    @model_validator(mode="after")
    def _stream_options_belong_to_streams(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        stop = self.stop or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1


class CompletionRequest(Sampling):
    """``POST /v1/completions``.

    Attributes:
        prompt: a text, texts, token ids, or lists of them.
        echo: put the prompt in front of the answer; not together with ``logprobs``.
        add_special_tokens: vLLM's: whether the tokenizer puts its own in front of a text.
    """

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def answers(self) -> int:
        """Answers to all prompts together."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.choices * (len(self.prompt) if several else 1)

    @model_validator(mode="after")
    def _no_logprobs_of_a_prompt(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("'echo' cannot be combined with 'logprobs' by this server")
        return self


class TextPart(_Asked):
    type: Literal["text"]
    text: str


class FunctionOfCall(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionOfCall


class Message(BaseModel):
    """One message; what else a client sends back of an answer, such as ``refusal``, is left out."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _what_a_role_has(self) -> Message:
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of the role 'tool' must have a 'tool_call_id'")
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("a message must have content, unless it calls tools")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class Function(_Asked):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Asked):
    type: Literal["function"]
    function: Function


class NamedFunction(_Asked):
    name: str


class NamedTool(_Asked):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Asked):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Asked):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``.

    Attributes:
        max_completion_tokens: without it, up to the end of the model's context.
        parallel_tool_calls: when false, only the first call of an answer is returned.
        response_format: not together with tools.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _what_goes_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("use either 'max_tokens' or 'max_completion_tokens'")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is only allowed when 'logprobs' is true")
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none") and not names:
            raise ValueError("'tool_choice' is only allowed when 'tools' are specified")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"'tool_choice' names no tool of {names}")
        if self.uses_tools and self.answer_schema is not None:
            raise ValueError("this server cannot combine 'response_format' with 'tools'")
        return self

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must keep to; ``None`` for free text."""
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        schema = asked.json_schema.schema_ if asked.json_schema is not None else None
        return {"type": "object"} if schema is None else schema


# --- responses -------------------------------------------------------------------------


class Error(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: Error


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request; of several choices together, and each prompt once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """Attributes:
    stop_reason: vLLM's: the stop that ended it; null at the model's own end.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None


class Completion(BaseModel):
    """An answer, or a chunk of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=_is_none)


class ChatChoice(BaseModel):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ToolCallDelta(ToolCall):
    index: int


class Delta(BaseModel):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=_is_none)
    content: str | None = Field(default=None, exclude_if=_is_none)
    tool_calls: list[ToolCallDelta] | None = Field(default=None, exclude_if=_is_none)


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """Attributes:
    max_model_len: vLLM's: tokens of a prompt and its answer together.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "apr-agents"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "stopping"]
