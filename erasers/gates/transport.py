"""Facilitated transport, the gate of semi-permeable membranes (SPM, Lyu et al., CVPR 2024, arXiv 2312.16145).

For a prompt p and the phrases c_j of a concept, with E the text encoder's features of all positions end to end and T
the set of a text's tokens, start, end and padding left out:

    cos_j   = <E(p), E(c_j)> / (|E(p)| |E(c_j)|)
    share_j = |T(p) n T(c_j)| / |T(c_j)|
    gamma   = max_j max(cos_j, share_j)

Differs from the paper: even unrelated prompts have a high cosine, as most positions are padding, so the cosine that
the empty prompt has is taken for 0; and from the threshold on gamma rises from 0 to 1, so that a gate can be shut. A
phrase counts as the tokens it has at a prompt's beginning, or inside of one. Where an encoder does not bring all
prompts to one length, its features cannot be laid side by side, and the tokens alone decide.
Published: gamma multiplies an adapter once; the official program multiplies both of its factors.
Official code read, not copied: Con6924/SPM (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ConceptError, NumericsError
from ..task import EncodedPrompt, Task
from . import Gate, ramp, unnamed

_NONE = -1
"""Fills up rows of token ids."""
_ARTICLE = "a"


@dataclass(frozen=True, eq=False)
class Transport:
    """Opens by the share of a concept's tokens that the prompt holds, or by the likeness of the whole features.

    Attributes:
        keys: features of the phrases, `[m, tokens, d]`.
        base: the cosine of the empty prompt's to each, `[m]`.
        ids: the phrases' own tokens, in every spelling, `[k, l]` int64, filled up with -1.
        threshold: gamma from which on it opens.
    """

    kind: ClassVar[str] = "transport"
    reads_tokens: ClassVar[bool] = True

    keys: Tensor
    base: Tensor
    ids: Tensor
    threshold: float

    @property
    def width(self) -> int:
        return self.keys.shape[2]

    def openness(self, states: Tensor, ids: Sequence[int] = ()) -> float:
        return ramp(max(self.likeness(states), self.share(ids)), self.threshold)

    def likeness(self, states: Tensor) -> float:
        """The largest cosine of a chunk of the prompt to a phrase, with that of the empty prompt for 0.

        0 for features of another length, of which no chunks can be made.
        """
        keys = self.keys.flatten(1)
        if len(states) % self.keys.shape[1]:
            return 0.0
        own = states.float().cpu().reshape(-1, keys.shape[1])
        found = functional.cosine_similarity(own[:, None], keys[None], dim=2)
        return float(((found - self.base) / (1 - self.base).clamp(min=1e-6)).max())

    def share(self, ids: Sequence[int]) -> float:
        """The largest share of a phrase's tokens that stand in the prompt."""
        said = set(ids)
        phrases = [{number for number in row if number != _NONE} for row in self.ids.tolist()]
        return max(len(said & own) / len(own) for own in phrases)

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "base": self.base, "ids": self.ids}


class Kind:
    """Facilitated transport."""

    name = Transport.kind
    summary = "opens by the share of the concept's tokens in the prompt, or by the likeness of all features, as in SPM"

    def fit(self, groups: Sequence[Sequence[str]], task: Task, threshold: float) -> list[Gate]:
        if not all(groups):
            raise unnamed()
        empty, article = task.encode(["", _ARTICLE])
        return [_gate(task, names, empty, _content(article), threshold) for names in groups]

    def load(self, tensors: Mapping[str, Tensor], threshold: float) -> Gate:
        keys, base, ids = (tensors.get(name) for name in ("keys", "base", "ids"))
        if keys is None or base is None or ids is None or not _fits(keys, base, ids):
            raise NumericsError("A transport gate's tensors do not fit together.", "Make the eraser again.")
        return Transport(keys, base, ids, threshold)


GATE = Kind()


def _gate(
    task: Task, names: Sequence[str], empty: EncodedPrompt, article: tuple[int, ...], threshold: float
) -> Transport:
    phrases = task.encode(list(names))
    inside = [_content(prompt) for prompt in task.encode([f"{_ARTICLE} {name}" for name in names])]
    rest = [own[len(article) :] for own in inside if own[: len(article)] == article]
    own = [row for row in dict.fromkeys([*map(_content, phrases), *rest]) if row]
    if not all(map(_content, phrases)):
        raise ConceptError("A concept's name has no tokens, so that no gate can read it.", "Write it in words.")
    longest, length = max(map(len, own)), min(len(prompt.states) for prompt in (empty, *phrases))
    ids = torch.tensor([[*row, *[_NONE] * (longest - len(row))] for row in own])
    keys = torch.stack([phrase.states[:length] for phrase in phrases])
    base = functional.cosine_similarity(empty.states[:length].flatten()[None], keys.flatten(1))
    return Transport(keys, base, ids, threshold)


def _content(prompt: EncodedPrompt) -> tuple[int, ...]:
    """A prompt's own tokens, without those that an embedding stands in the place of."""
    return tuple(number for number in prompt.ids[prompt.start : prompt.last + 1] if number != _NONE)


def _fits(keys: Tensor, base: Tensor, ids: Tensor) -> bool:
    shapes = keys.ndim == 3 and keys.numel() > 0 and base.shape == keys.shape[:1] and ids.ndim == 2 and len(ids) > 0
    return shapes and ids.dtype == torch.int64 and bool((ids != _NONE).any(1).all())
