"""What guards are made of: parts that act while a picture is drawn, and leave every weight as it is.

A guard acts on what the model's predictions are mixed to, on the text features that the prompt's prediction reads, or
on both. Each host carries the parts out once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .errors import ConceptError, SettingError
from .learn.space import wide
from .model import Token
from .spec import MethodSpec, Parameter, Value
from .task import Task


@dataclass(frozen=True)
class Window:
    """The part of sampling that something acts in, as shares: 0 is all noise, 1 the finished picture."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise SettingError(
                f"The guard would act from {self.start:g} to {self.end:g} of sampling, which is never.",
                "Both are shares from 0 to 1; set the start below the end.",
            )

    def holds(self, percent: float) -> bool:
        """Whether a moment is in the window; its end is not, but for the end of sampling."""
        return self.start <= percent and (percent < self.end or self.end == 1)


@dataclass(frozen=True, eq=False)
class Look:
    """One look of the model at latents: the clean latents it sees in them, for every prompt there is.

    Attributes:
        x: the latents, `[n, c, h, w]` in units of sigma (learn/space.py).
        sigma: `[n]`.
        percent: how far sampling has come, 0 to 1.
        said, unsaid: denoised latents for the picture's prompt and for its negative.
        seen: denoised latents for the guard's own prompts, by prompt.
        memory: what the guard left here at the steps before; empty where sampling begins.
    """

    x: Tensor
    sigma: Tensor
    percent: float
    said: Tensor
    unsaid: Tensor
    seen: Mapping[str, Tensor]
    memory: dict[str, Tensor]

    def predicted(self, denoised: Tensor) -> Tensor:
        """(x - D) / sigma: the noise for models that see noise or v, the velocity for those of flow."""
        return (self.x - denoised) / wide(self.sigma, self.x)

    def shifted(self, denoised: Tensor, by: Tensor) -> Tensor:
        """The denoised latents that belong to a prediction with `by` subtracted: D + sigma * by."""
        return denoised + wide(self.sigma, self.x) * by


class Mix(Protocol):
    """Mixes predictions into those that guidance gets."""

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        """New denoised latents for the prompt and for the negative."""
        ...


class TextPart(Protocol):
    """Edits the features of the picture's prompt, not those of the negative.

    Attributes:
        reads: whether it has to know the prompt's tokens.
    """

    reads: bool

    def read(self, chunks: Sequence[Sequence[Token]]) -> Any:
        """What it makes of a prompt's padded tokens, chunk by chunk."""
        ...

    def holds(self, reading: Any, percent: float) -> bool:
        """Whether it edits the prompt at this moment."""
        ...

    def edit(self, states: Tensor, reading: Any) -> Tensor:
        """Features `[tokens, d]` of the prompt, as they shall be."""
        ...


@dataclass(frozen=True)
class Guarding:
    """What a guard does to a model.

    Attributes:
        prompts: prompts that it wants predictions for, beside the picture's own; they share the batch with it.
        mix: what it makes of the predictions, or None.
        window: when it mixes; outside of it nothing more is predicted.
        text: how it edits text features, or None.
        refuses_unguided: why it cannot act at CFG 1; "" where it can. What mixes can: the negative is then predicted
            for it.
    """

    prompts: tuple[str, ...] = ()
    mix: Mix | None = None
    window: Window = Window()
    text: TextPart | None = None
    refuses_unguided: str = ""


class Guard(Protocol):
    """A published way to keep a concept out of pictures while they are drawn.

    Attributes:
        needs: what it needs of a model and its sampling, in a sentence for the user.
    """

    spec: MethodSpec
    needs: str

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """What it does against a task's concepts, with checked settings (`spec.settings`).

        Raises:
            LetheError: the task lacks something that it needs.
        """
        ...


def guarded_names(task: Task) -> tuple[str, ...]:
    """Every name of every concept, synonyms included; ConceptError where there is none."""
    names = tuple(name for concept in task.concepts.erase for name in concept.names)
    if not names:
        raise ConceptError("There is no concept to guard against.", "Connect a 'Concept to Erase' node.")
    return names


def window_settings(start: float = 0.0, published: str = "0 keeps a concept out") -> tuple[Parameter, Parameter]:
    """When a guard acts."""
    return (
        Parameter(
            "start",
            start,
            f"Share of sampling at which it begins to act, 0 to 0.99. Start at {start:g}; {published}.",
            maximum=0.99,
        ),
        Parameter("end", 1.0, "Share of sampling at which it ends, 0.01 to 1. Start at 1.", minimum=0.01),
    )


def window_of(settings: Mapping[str, Value]) -> Window:
    """The window that `start` and `end` describe."""
    return Window(float(settings["start"]), float(settings["end"]))
