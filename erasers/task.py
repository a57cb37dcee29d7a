"""What a method is given: concepts, a text encoder to look at them with, and the model where it needs one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .concepts import ConceptList
from .errors import FamilyError
from .model import Model, TextTower
from .result import Eraser
from .sight import Sight
from .sites import Family
from .store.preserve_cache import PreserveCache
from .target import Track, untracked


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the denoiser's sites see it.

    Attributes:
        text: the prompt.
        states: `[tokens, d]` float32, the features of every position, padding that the denoiser reads included.
        last: position of the last content token; for a prompt without content the one before its place, where what
            stands for it is: the start token, or with encoders that have none, the first that closes it.
        ids: token ids of every position where the encoder has them; empty otherwise.
        pooled: `[p]` float32, the features that enter the model beside the tokens; None where the
            family has none.
        start: position of the first content token; `last + 1` for a prompt without content.
        parts: the prompt as each encoder gives it, where several follow one another along the tokens; `last`, `start`
            and the head of `states` are then the first one's.
        whole: `[all tokens, d]`, the features as the denoiser gets them, where padding is left out of `states`; else
            None.
        beside: what else the host gives the denoiser of the prompt, masks for instance: `[1, ...]` by its own names.
    """

    text: str
    states: Tensor
    last: int
    ids: tuple[int, ...] = ()
    pooled: Tensor | None = None
    start: int = 1
    parts: tuple[EncodedPrompt, ...] = ()
    whole: Tensor | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def read(self) -> Tensor:
        """`[all tokens, d]`, the features as the denoiser gets them."""
        return self.states if self.whole is None else self.whole

    @property
    def size(self) -> int:
        """Bytes of what is kept of it."""
        tensors = (self.read, *self.beside.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def joined_parts(parts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """One prompt of what several encoders, that follow one another along the tokens, make of it."""
    ids = tuple(number for part in parts for number in part.ids)
    return replace(parts[0], states=torch.cat([part.states for part in parts]), ids=ids, parts=tuple(parts))


Encode = Callable[[list[str]], list[EncodedPrompt]]


@dataclass(frozen=True)
class Task:
    """Everything a method or a training recipe may need.

    Attributes:
        concepts: what to erase and what to preserve.
        family: the model family the eraser is for.
        encoder: fingerprint of the text encoder, kept in the eraser.
        encode: prompts to `EncodedPrompt`s, through the model's own tokenizer and text encoder.
        model: the loaded model, for methods that need its weights or run it; None where none is at hand.
        grams: Gram matrices of preserved prompts that were computed before.
        earlier: what was erased from this model before; the names are held, so that a later edit does
            not undo an earlier one.
        pooled: whether the pooled features are edited as well.
        sight: sees what the model draws; None where no image encoder is at hand.
        pictures: latents `[n, c, h, w]` of pictures of the concept that the user gave, or None.
        regions: where in each the concept is, `[n, h, w]` in 0..1 at the latents' size, or None; guards, which may
            have no picture, take one mask of any size.
        texts: the text encoders that the sites read, as one; None where the model has one alone (`Model.tower`).
        track: goes through what takes long with progress, and stops when the user cancels.
        further: the same task on each of the model's further text features, as if they were all that it reads.
    """

    concepts: ConceptList
    family: Family
    encoder: str
    encode: Encode
    model: Model | None = None
    grams: PreserveCache = field(default_factory=PreserveCache)
    earlier: tuple[Eraser, ...] = ()
    pooled: bool = False
    sight: Sight | None = None
    pictures: Tensor | None = None
    regions: Tensor | None = None
    texts: TextTower | None = None
    track: Track = untracked
    further: tuple[Task, ...] = ()

    def loaded(self) -> Model:
        """The model; FamilyError where the task has none."""
        if self.model is None:
            raise FamilyError("This method needs the model itself.", "Give it a model, not a text encoder alone.")
        return self.model

    def tower(self) -> TextTower:
        """The text encoders that the sites read, as one; FamilyError where the task has no model."""
        return self.loaded().tower() if self.texts is None else self.texts

    @property
    def held(self) -> list[str]:
        """Every prompt to hold: the empty one, the preserved ones, and what was erased before."""
        erased = self.concepts.names
        before = [name for eraser in self.earlier for name in eraser.recipe.names if name not in erased]
        return list(dict.fromkeys(("", *self.concepts.kept, *before)))


def remembering(encode: Encode, room: int = 512, most: int = 4 << 30) -> Encode:
    """`encode` that keeps the prompts it was last asked for, up to `room` of them and `most` bytes, and asks for
    others in one call.
    """
    known: OrderedDict[str, EncodedPrompt] = OrderedDict()

    def remember(prompts: list[str]) -> list[EncodedPrompt]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        fresh = {prompt.text: prompt for prompt in encode(missing)} if missing else {}
        found = [fresh.get(prompt) or known[prompt] for prompt in prompts]
        known.update(fresh)
        while len(known) > room or sum(prompt.size for prompt in known.values()) > most:
            known.popitem(last=False)
        return found

    return remember
