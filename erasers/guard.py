"""What guards are made of: parts that act while a picture is drawn, and leave every weight as it is.

A guard acts on what the model's predictions are mixed to, on the text features that the prompt's prediction reads, or
on both. Each host carries the parts out once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from .errors import ConceptError, FamilyError
from .learn.space import wide
from .model import Token
from .nudge import Nudge
from .redirect import Redirect
from .rivals import Rivals
from .sites import Family
from .spec import MethodSpec, Value
from .task import Task
from .window import Window
from .words import WordPart

MIDDLE_BLOCK = r"^mid_block\.resnets\.\d+\.conv2$"
"""Layers of a UNet whose output is added to the features of its middle block; the last of them ends it."""


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
        original: denoised latents for the picture's prompt without the guard's own edit of its features, where the
            guard asks for them (`Guarding.unedited`).
        along: the prediction that leads along a given picture's own way, `Guarding.path`; None without one.
    """

    x: Tensor
    sigma: Tensor
    percent: float
    said: Tensor
    unsaid: Tensor
    seen: Mapping[str, Tensor]
    memory: dict[str, Tensor]
    original: Tensor | None = None
    along: Tensor | None = None

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


class Reader(Protocol):
    """A part that has to know the prompt's tokens."""

    def read(self, chunks: Sequence[Sequence[Token]]) -> Any:
        """What it makes of a prompt's padded tokens, chunk by chunk."""
        ...


class TextPart(Protocol):
    """Edits the features of the picture's prompt, not those of the negative; `reading` is what it read, or None."""

    def holds(self, reading: Any, percent: float) -> bool:
        """Whether it edits the prompt at this moment."""
        ...

    def edit(self, states: Tensor, reading: Any) -> Tensor:
        """Features `[tokens, d]` of the prompt, as they shall be."""
        ...


class AttentionPart(Protocol):
    """Changes what cross-attention gives the picture's prompt, by what the same queries get of other features.

    Attributes:
        states: the other features, `[m, d]`.
        window: when it acts.
    """

    @property
    def states(self) -> Tensor: ...

    @property
    def window(self) -> Window: ...

    def mix(self, said: Tensor, unsaid: Tensor) -> Tensor:
        """Outputs of attention `[n, places, width]` as they shall be, from those of the prompt and of the others."""
        ...


class BesidePart(Protocol):
    """Changes features of pictures by those of references that go through the model beside them.

    Attributes:
        latents: of the references, `[r, c, h, w]`.
        window: when it acts.
    """

    @property
    def latents(self) -> Tensor: ...

    @property
    def window(self) -> Window: ...

    def acts(self, block: str, crosses: bool, reduction: float) -> bool:
        """Whether it acts behind a self- or cross-attention.

        Args:
            block: part of the UNet, of `words.BLOCKS`.
            reduction: how many times smaller than the latents the features are.
        """
        ...

    def push(self, features: Tensor, others: Tensor) -> Tensor:
        """Features `[n, places, width]` as they shall be, by all the references' `[m, width]`."""
        ...


@dataclass(frozen=True, eq=False)
class Middle:
    """What is added to the features between the halves of a UNet, on the prompt's side.

    Attributes:
        vector: `[c]`, the same at every place.
        window: when it is added.
    """

    vector: Tensor
    window: Window


@dataclass(frozen=True, eq=False)
class Path:
    """A given picture that is drawn anew: sampling starts at the end of the way back from it (learn/path.py).

    Attributes:
        latents: `[n, c, h, w]`; those of a batch take turns.
        prompt: of the guard's prompts, the one that the way back is under.
        rounds: how often each step is solved.
    """

    latents: Tensor
    prompt: str
    rounds: int


class SkipPart(Protocol):
    """Changes what the first half of a UNet hands over to the second, by what it does for the unedited prompt.

    It acts wherever the guard's text part edits, and costs one prediction more there: that of the unedited prompt.
    """

    def keep(self, skip: Tensor, width: float) -> Tensor | None:
        """What has to be known of the unedited prompt's features `[n, c, h, w]`; None where it does not act.

        Args:
            width: channels of the features that they meet, as a share of the middle block's.
        """
        ...

    def change(self, skip: Tensor, kept: Tensor, width: float) -> Tensor:
        """Features `[n, c, h, w]` of the edited prompt as they shall be, by what was kept for the same rows."""
        ...


@dataclass(frozen=True)
class Guarding:
    """What a guard does to a model.

    Attributes:
        prompts: prompts that it wants predictions for, beside the picture's own; they share the batch with it.
        mix: what it makes of the predictions, or None.
        window: when it mixes; outside of it nothing more is predicted.
        text: how it edits text features, or None.
        words: which of the prompt's words it reweights in attention, or None.
        reader: the one of these two that has to know the prompt's tokens, or None.
        refuses_unguided: why it cannot act at CFG 1; "" where it can. What mixes can: the negative is then predicted
            for it.
        attention: how it changes cross-attention, or None.
        beside: how it changes features by those of reference pictures, or None.
        middle: what it adds between the halves of a UNet, or None.
        unedited: whether the mix also needs the prediction for the prompt without the text part's edit; it then mixes
            only where there is an edit.
        skips: how it changes what the halves of a UNet hand over where the text part edits, or None.
        path: the picture that it draws anew, or None.
        nudge: how it moves the latents by where the prompt's words look, or None.
        rivals: how it keeps words to the places that they win in cross-attention, or None; what its reader reads has
            the prompt's `words`.
        further: how it edits text features that enter beside those of the sites, by their stream; its reader is then
            told the tokens of each of their encoders by itself.
        spares_negative: whether the mix leaves the negative's prediction unread; its first prompt's then stands there,
            and the negative's is not made.
        redirect: how it keeps self-attention from looking into a mask, for one of its own prompts, or None.
    """

    prompts: tuple[str, ...] = ()
    mix: Mix | None = None
    window: Window = field(default_factory=Window)
    text: TextPart | None = None
    words: WordPart | None = None
    reader: Reader | None = None
    refuses_unguided: str = ""
    attention: AttentionPart | None = None
    beside: BesidePart | None = None
    middle: Middle | None = None
    unedited: bool = False
    skips: SkipPart | None = None
    path: Path | None = None
    nudge: Nudge | None = None
    rivals: Rivals | None = None
    further: Mapping[str, TextPart] = field(default_factory=dict)
    spares_negative: bool = False
    redirect: Redirect | None = None


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


def check_family(spec: MethodSpec, family: Family) -> None:
    """FamilyError where a guard needs something that a family has not."""
    need = spec.missing(family)
    if need is not None:
        raise FamilyError(
            f"{spec.title} needs {need.what}, which {family.title} has not.",
            "Take another guard; the README says which go with which models.",
        )


def guarded_names(task: Task) -> tuple[str, ...]:
    """Every name of every concept, synonyms included; ConceptError where there is none."""
    names = task.concepts.names
    if not names:
        raise ConceptError("There is no concept to guard against.", "Connect a 'Concept to Erase' node.")
    return names
