"""Everything this package raises. One class per cause; the data are attributes."""

from __future__ import annotations


class AprError(Exception):
    """Base of every error of this package."""


class InvalidOption(AprError, ValueError):
    """An option has a value it cannot have."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"{option} is {value!r}, but must be {expected}.")
        self.option, self.value, self.expected = option, value, expected


class UnknownModel(AprError, ValueError):
    """A model string that leads to no model."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"Cannot find the model {model!r}: {why}. Use 'bundled', "
            "'local:DIRECTORY_OR_HUB_ID', 'completions:URL#MODEL' or a chat model such as "
            "'openai:gpt-5'."
        )
        self.model, self.why = model, why


class ModelNotReady(AprError, ValueError):
    """A chat model that is known here but cannot be set up: a package or a key is missing."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"Cannot set up the model {model!r}: {why}.")
        self.model, self.why = model, why


class MissingExtra(AprError, ImportError):
    """A feature needs packages that an extra of this package installs."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"This needs the package {package!r}. Install it with: "
            f"pip install 'apr-agents[{extra}]'"
        )
        self.extra, self.package = extra, package


class UnsupportedModel(AprError, ValueError):
    """A model that the engine cannot run."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"The engine cannot run a {model}: {why}. Use a decoder whose attention transformers "
            "can replace, such as Llama, Qwen or Gemma."
        )
        self.model, self.why = model, why


class InvalidGrammar(AprError, ValueError):
    """A constraint that cannot be enforced."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"This {kind} cannot be used: {why}.")
        self.kind, self.why = kind, why


class PromptTooLong(AprError, ValueError):
    """A prompt leaves no room in the model's context."""

    def __init__(self, tokens: int | None, limit: int | None) -> None:
        what = f"The prompt has {tokens} tokens, but this model's context holds {limit}."
        if tokens is None or limit is None:  # a server may not say
            what = "The prompt is longer than this model's context."
        super().__init__(f"{what} Shorten the question or use a model with a longer context.")
        self.tokens, self.limit = tokens, limit


class EmptyQuestion(AprError, ValueError):
    """There is nothing to answer."""

    def __init__(self) -> None:
        super().__init__("The question is empty. Pass a message with some text.")


class BackendFailed(AprError, RuntimeError):
    """A backend could not finish a request."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The model backend failed: {why}")
        self.why = why


class InvalidTrace(AprError, ValueError):
    """A file that is no trajectory."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not a trajectory of apr-agents: {why}.")
        self.path, self.why = path, why


class NoTimes(AprError, ValueError):
    """A trajectory that cannot be shown in seconds."""

    def __init__(self) -> None:
        super().__init__(
            "This trajectory has no times: its format is version 1. Run the question again, or "
            "show the run in tokens."
        )


class SpansRefused(AprError, RuntimeError):
    """A collector did not take a run's spans."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(
            f"{endpoint} did not take the spans. Check that a collector listens there for OTLP "
            "over HTTP."
        )
        self.endpoint = endpoint


class InvalidProblem(AprError, ValueError):
    """A line of a problem file that cannot be used."""

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(f"{path}, line {line}: {why}.")
        self.path, self.line, self.why = path, line, why


class InvalidScript(AprError, ValueError):
    """A line of a data set that cannot be used."""

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(f"{path}, line {line}: {why}.")
        self.path, self.line, self.why = path, line, why


class TrainingCollapsed(AprError, RuntimeError):
    """A policy that is reinforced has stopped deciding when to split."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(
            f"The training stopped at step {step}: {why}. Lower the learning rate, add problems "
            "of the other kind, or change the reward."
        )
        self.step, self.why = step, why


class TaskFailed(AprError, RuntimeError):
    """A task could not make its problems."""

    def __init__(self, task: str, why: str) -> None:
        super().__init__(f"The task {task} could not make a problem: {why}.")
        self.task, self.why = task, why


class UnusableFile(AprError):
    """A file that cannot be read or written as it should be."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"Cannot use the file {path}: {why}.")
        self.path, self.why = path, why
