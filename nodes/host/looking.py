"""Seeing where a picture looks at a prompt's words, while it is drawn by the host's own samplers.

Beside each cross-attention its shares are computed once more and added up at once; what the layer gives is untouched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.errors import FamilyError, SettingError
from ...erasers.measure.heat import fitted_map, word_places, word_shares
from .acting import OVERRIDE, behind, feature_size, mask_of_row
from .conditioning import end_token, token_ids
from .contrasting import CONTRAST
from .sampling import Sampling, draw_latents, encode_prompt

_PROMPT = 0
"""What the host calls rows of the prompt in a batch."""


class _Inside(threading.local):
    """Whether what runs is cross-attention."""

    now: bool = False


@dataclass(eq=False)
class Looks:
    """Adds up what words get of the attention, by the size of the layers' features.

    Attributes:
        places: positions of each word's tokens.
        tokens: of the prompt, padding included.
        pictures: of the batch; guards may put references behind them.
        sums: `[pictures, words, h, w]` by height and width; the calls are counted beside.
    """

    places: Sequence[Sequence[int]]
    tokens: int
    pictures: int = 1
    sums: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    calls: int = 0

    def mean(self, height: int, width: int) -> Tensor:
        """The mean over all layers and steps, `[pictures, words, height, width]`."""
        return torch.stack([fitted_map(own, height, width) for own in self.sums.values()]).sum(0) / self.calls

    def see(self, q: Tensor, k: Tensor, heads: int, mask: Tensor | None, options: Mapping[str, Any]) -> None:
        """One cross-attention."""
        chunks = options["cond_or_uncond"]
        each, size = len(q) // len(chunks), feature_size(options, q.shape[1])
        # Prompts of different length in one batch are repeated to a common one: a word is then there several times.
        copies = k.shape[1] // self.tokens
        places = [[p + copy * self.tokens for copy in range(copies) for p in own] for own in self.places]
        for index in (i for i, kind in enumerate(chunks) if kind == _PROMPT):
            rows = range(index * each, index * each + self.pictures)
            found = torch.stack([word_shares(q[r], k[r], heads, mask_of_row(mask, r, len(q)), places) for r in rows])
            found = copies * found.unflatten(-1, size).cpu()
            self.sums[size] = self.sums.get(size, 0) + found
            self.calls += 1


def look_at_words(
    model: ModelPatcher, clip: Any, prompt: str, words: Sequence[str], how: Sampling, negative: str = "", count: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw a prompt and see where the picture looks at words of it.

    Returns:
        Latents `[count, c, h, w]` of the pictures, which are those drawn without looking, and for each the mean share
        of the attention that each word's tokens get, `[count, words, height, width]` in pixels.

    Raises:
        SettingError: no word, or a word that is not in the prompt.
        FamilyError: a model without cross-attention.
    """
    if not words:
        raise SettingError("There is no word to look at.", "Write one per line.")
    if not any(".attn2.to_k." in name for name in model.model_state_dict()):
        raise FamilyError("This model has no cross-attention to look at.", "Use a UNet, such as SD 1, SD 2 or SDXL.")
    chunks = [[token for token, *_ in chunk] for chunk in next(iter(clip.tokenize(prompt).values()))]
    looks = Looks([word_places(chunks, word, _content(clip, word)) for word in words], sum(map(len, chunks)), count)
    positive, against = encode_prompt(clip, prompt), encode_prompt(clip, negative)
    latents = draw_latents(watched(model, looks), positive, against, how, count)
    return latents, looks.mean(how.height, how.width)


def watched(model: ModelPatcher, looks: Looks) -> ModelPatcher:
    """A clone of `model` that tells `looks` of its cross-attention."""
    clone, inside = model.clone(), _Inside()

    def enter(n: Tensor, k: Tensor, v: Tensor, extra_options: Any) -> tuple[Tensor, Tensor, Tensor]:
        inside.now = True
        return n, k, v

    def leave(n: Tensor, extra_options: Any) -> Tensor:
        inside.now = False
        return n

    clone.set_model_attn2_patch(enter)
    clone.set_model_attn2_output_patch(leave)
    options = clone.model_options["transformer_options"]
    before = options.get(OVERRIDE)

    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        # Innermost, where what other nodes do to attention is done.
        seeing = _seeing(func, looks) if inside.now else func
        return behind(seeing, before)(*args, **kwargs)

    options[OVERRIDE] = override
    return clone


def _seeing(func: Callable[..., Tensor], looks: Looks) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        options = kwargs["transformer_options"]
        if CONTRAST not in options:
            looks.see(q, k, heads, mask, options)
        return func(q, k, v, heads, mask=mask, **kwargs)

    return attention


def _content(clip: Any, word: str) -> list[int]:
    ids, end = list(token_ids(clip, word)), end_token(clip)
    return ids[1 : ids.index(end, 1)] if end in ids[1:] else ids[1:]
