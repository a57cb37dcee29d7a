"""What a method may ask of a loaded model beyond its text features. Each host implements `Model` once.

Names of parameters and modules are those of diffusers for UNets and of the checkpoint for other
denoisers, without a prefix; text encoders are named by their stream: `clip_l.text_model.encoder...`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from .errors import ConceptError, FamilyError
from .phrases import end_of, places_of
from .result import ContextOperator

Token = int | Tensor
"""A token's id, or the vector `[d]` that stands in place of its embedding."""
_BATCH = 32


class Strand(tuple[Token, ...]):
    """What one of several text encoders reads of a prompt, or of a chunk of it; every token has a row of features.

    Attributes:
        start, stop: the prompt's own tokens among them, between what the encoder and its template put around them.
        stream: the encoder.
    """

    start: int
    stop: int
    stream: str

    @classmethod
    def of(cls, tokens: Sequence[Token], own: range, stream: str) -> Strand:
        """Tokens of which `own` are the prompt's."""
        found = cls(tokens)
        found.start, found.stop, found.stream = own.start, own.stop, stream
        return found


@dataclass(frozen=True)
class TextTower:
    """One text encoder; or several as one, of which each host says what it can tell.

    Attributes:
        stream: its name in a family, e.g. "clip_l".
        module: the network itself, for hooks only; its weights are read through `weight`.
        ids: padded token ids of a prompt, from its start token on.
        encode: rows of tokens, padded, to states `[n, tokens, d]` and pooled features `[n, p]`, both float32, p = 0
            where the encoder pools nothing; with gradients where they are switched on, towards vectors among the
            tokens too.
        decode: token ids to text.
        weight: the effective weight of a parameter of `module` by name, float32 on the CPU.
        end: id of the end token.
    """

    stream: str
    module: nn.Module
    ids: Callable[[str], Sequence[int]]
    encode: Callable[[Sequence[Sequence[Token]]], tuple[Tensor, Tensor]]
    decode: Callable[[Sequence[int]], str]
    weight: Callable[[str], Tensor]
    end: int

    def run(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts to states and pooled features, as `encode` gives them."""
        return self.encode([self.ids(prompt) for prompt in prompts])

    def vocabulary(self) -> Tensor:
        """The embedding of every token, `[v, d]` float32 on the CPU; FamilyError where the encoder is no CLIP."""
        names = [name for name, _ in self.module.named_parameters() if name.endswith("token_embedding.weight")]
        if not names:
            raise FamilyError("This model's text encoder is no CLIP.", "Choose what needs no new words.")
        return self.weight(names[0])

    def content(self, prompt: str) -> list[int]:
        """Token ids of a prompt without start, end and padding."""
        ids = list(self.ids(prompt))
        return ids[1 : ids.index(self.end, 1)] if self.end in ids[1:] else ids[1:]

    def padded(self, content: Sequence[Token]) -> list[Token]:
        """Content tokens between start, end and padding; what does not fit is cut off."""
        frame = list(self.ids(""))
        room = len(frame) - 2
        return [frame[0], *content[:room], self.end, *frame[len(content[:room]) + 2 :]]

    def own(self, chunk: Sequence[Token]) -> range:
        """Which of a padded chunk's tokens are the prompt's own."""
        return range(chunk.start, chunk.stop) if isinstance(chunk, Strand) else range(1, end_of(chunk, self.end))

    def spans(self, chunk: Sequence[Token], phrase: str) -> list[range]:
        """Where a phrase stands among a chunk's tokens."""
        ids = self.content(phrase)
        return [range(place, place + len(ids)) for place in places_of(chunk, ids)] if ids else []

    def spoken(self, chunks: Sequence[Sequence[Token]]) -> list[list[Token]]:
        """A prompt's own tokens, chunk by chunk, as `content` gives them."""
        return [list(chunk[self.own(chunk).start : self.own(chunk).stop]) for chunk in chunks]

    def states(self, contents: Sequence[Sequence[Token]]) -> Iterator[Tensor]:
        """Features `[tokens, d]` of each of some prompts, given by their own tokens."""
        rows = [self.padded(content) for content in contents]
        for start in range(0, len(rows), _BATCH):
            yield from self.encode(rows[start : start + _BATCH])[0]

    def features(self, contents: Sequence[Sequence[Token]]) -> Any:
        """What a guard draws with in place of a prompt whose chunks have these own tokens: `[tokens, d]` on the CPU."""
        return self.encode([self.padded(content) for content in contents])[0].flatten(0, 1).cpu()

    def position(self, prompt: str, phrase: str) -> int:
        """Position of the last token of a phrase in a prompt; of the prompt's last token for an empty phrase.

        Raises:
            ConceptError: the phrase's tokens do not stand in the prompt.
        """
        whole, part = self.content(prompt), self.content(phrase)
        for start in range(len(whole) - len(part), -1, -1):
            if part and whole[start : start + len(part)] == part:
                return start + len(part)
        if part:
            raise ConceptError("A concept's words are not found in its own prompt.", "Write them without punctuation.")
        return len(whole)


class Model(Protocol):
    """A loaded model; nothing here changes it.

    Attributes:
        in_place: whether its layers, or its text encoder's, change their own inputs in place.
    """

    in_place: bool

    def weights(self) -> Mapping[str, Tensor]:
        """The effective weights of the sites by name, `[o, d]` float32 on the CPU."""
        ...

    def parameter(self, name: str) -> Tensor:
        """The effective weight of one parameter of the denoiser, float32 on the CPU."""
        ...

    def modules(self, pattern: str) -> Mapping[str, nn.Module]:
        """The denoiser's modules whose names match a regular expression, in forward order, for hooks only."""
        ...

    def tower(self) -> TextTower:
        """The text encoder that the sites read."""
        ...

    def sample(
        self,
        prompts: list[str],
        steps: int,
        cfg: float,
        seed: int,
        on_step: Callable[[int], None] | None = None,
        operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:
        """Draw one latent per prompt, `[n, c, h, w]`.

        Args:
            on_step: is told the number of each finished step.
            operators: edits of the text features to draw with, by stream.
        """
        ...

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        """The noise the model sees in noised latents, with gradients where they are switched on.

        Erasers and guards that the model carries take part, as they do when it draws.

        Args:
            latents, noise: `[n, c, h, w]`.
            percent: how far sampling has come, 0 (all noise) to 1; one for all, or `[n]`.
            context: `[n, tokens, d]`, as it leaves the text encoder.
            cfg: guidance scale against the empty prompt; 1 is the prediction for `context` alone.
        """
        ...

    def prediction(self) -> str:
        """What the denoiser predicts: `learn.space.EPS`, `V`, `FLOW`, `EDM`, `COSMOS` or `RAW_V`."""
        ...

    def level(self, percent: Tensor) -> Tensor:
        """The noise level sigma at which sampling is so far on, `[n]` for percents `[n]` from 0 (all noise) to 1."""
        ...

    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent of a picture of the family's usual size: `(c, h, w)`, of a video `(c, 1, h, w)`."""
        ...

    def device(self) -> torch.device:
        """Where the denoiser computes."""
        ...

    def ready(self, checkpoint: bool = False, bf16: bool = False) -> AbstractContextManager[None]:
        """Keep the model loaded, so that `predict` can be called, with or without gradients, while the block runs.

        Args:
            checkpoint: blocks run a second time for their gradients, instead of keeping what they need for them.
            bf16: compute in bfloat16 where the model's own type is wider.
        """
        ...

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The denoiser's own prediction, with gradients where they are switched on; only inside `ready`.

        Erasers that the model carries take part; what acts in the guidance does not.

        Args:
            x: `[n, c, h, w]` in units of sigma (learn/space.py).
            sigma: `[n]`.
            context: `[n, tokens, d]`, as it leaves the text encoder.
            pooled: `[n, p]`, for families that read pooled features.
            beside: what else the host gives the denoiser of the prompts, `[n, ...]` by its own names.
        """
        ...


def is_vector(token: Token) -> TypeGuard[Tensor]:
    """Whether a token is a vector in place of an id."""
    return isinstance(token, Tensor)
