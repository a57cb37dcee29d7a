"""Which positions of a prompt's tokens belong to a concept's name, and which are end tokens.

CLIP of Stable Diffusion 1 pads with its end token, so that "the end token" stands at every position of the padding;
others pad with another token, and have one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConceptError, FamilyError
from ..task import EncodedPrompt, Task
from .moment import CONCEPT, NAME, Scene

NONE, FIRST, EVERY = "none", "first", "all"
ENDS = (EVERY, FIRST, NONE)
"""Which end tokens count as the concept's own, beside those of its name."""


def token_mask(task: Task, scenes: Sequence[Scene], ends: str = NONE) -> Tensor:
    """1 at the tokens of each scene's name in its concept's prompt, and at end tokens, else 0: `[n, tokens]`.

    Raises:
        ConceptError: the name's tokens do not stand in the prompt.
        FamilyError: the text encoder does not tell its tokens.
    """
    prompts, names = (task.encode([found[role] for found in scenes]) for role in (CONCEPT, NAME))
    mask = torch.zeros(len(scenes), len(prompts[0].states))
    for row, prompt, name in zip(mask, prompts, names, strict=True):
        row[[*name_places(prompt, name), *end_places(prompt, ends)]] = 1.0
    return mask


def name_places(prompt: EncodedPrompt, name: EncodedPrompt) -> list[int]:
    """Positions of a name's tokens in a prompt, wherever they stand."""
    if not prompt.ids or not name.ids:
        raise FamilyError("This text encoder does not tell its tokens.", "Choose a recipe that does not look at them.")
    whole, own = prompt.ids[1 : prompt.last + 1], name.ids[1 : name.last + 1]
    starts = [i for i in range(len(whole) - len(own) + 1) if own and whole[i : i + len(own)] == own]
    if not starts:
        raise ConceptError(
            f"The tokens of '{name.text}' are not found in '{prompt.text}'.", "Write the concept without punctuation."
        )
    return sorted({start + i + 1 for start in starts for i in range(len(own))})


def end_places(prompt: EncodedPrompt, ends: str) -> list[int]:
    """Positions of a prompt's end tokens: none, the first, or all that the padding repeats."""
    first = prompt.last + 1
    found = [i for i in range(first, len(prompt.ids)) if prompt.ids[i] == prompt.ids[first]]
    return {NONE: [], FIRST: found[:1], EVERY: found}[ends]
