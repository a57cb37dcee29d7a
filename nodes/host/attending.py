"""Reweighting a prompt's words in the host's attention (erasers/words.py).

In a UNet the text features of cross-attention are scaled before the layer makes values of them. In transformers the
values themselves are, around the host's attention: in cross-attention, or where a prompt's tokens and a picture's
places look at both together. There a word is turned down for the other tokens too, which would pass it on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import functional

from ...erasers.errors import GuardError
from ...erasers.sites import TextKeys
from ...erasers.words import WordPart
from .acting import OVERRIDE, Sampling, behind, feature_size

_BATCH = "lethe.attending.batch"


@dataclass(frozen=True)
class _Batch:
    """A batch on its way into a transformer: tokens of its prompts, and the shape of its latents."""

    tokens: int
    shape: tuple[int, ...]

    def places(self, patch: int) -> int:
        """Of a picture or of all frames, each of so many latents a side."""
        return math.prod(self.shape[2:-2]) * -(-self.shape[-2] // patch) * -(-self.shape[-1] // patch)


@dataclass(frozen=True, eq=False)
class _Words:
    """What reweights words: the guard, its part, the run's key among the options, and where tokens stand."""

    guard: Any
    part: WordPart
    key: str
    keys: TextKeys | None


def attend(model: ModelPatcher, guard: Any, part: WordPart, key: str, keys: TextKeys | None) -> None:
    """Put a part on a clone: as scaled values, which chain, or around attention where that does not do.

    Args:
        keys: where a transformer's tokens stand; None for UNets.
    """
    words = _Words(guard, part, key, keys)
    if keys is None and not part.renormalise and part.region is None:
        model.set_model_attn2_patch(_scaled(words))
        return
    options = model.model_options["transformer_options"]
    options[OVERRIDE] = _around(words, options.get(OVERRIDE))
    if keys is not None:
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, _BATCH)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _BATCH, _telling)


def _telling(
    executor: Callable[..., Tensor],
    x: Tensor,
    t: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """The wrapper that tells attention of the batch."""
    told = dict(transformer_options or {})
    if c_crossattn is not None:
        told[_BATCH] = _Batch(c_crossattn.shape[1], tuple(x.shape))
    return executor(x, t, c_concat, c_crossattn, control, told, **kwargs)


def _scaled(words: _Words) -> Callable[..., Any]:
    def patch(n: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        block = extra_options.get("block")
        if block is None or block[0] not in words.part.blocks:
            return n, k, v
        weights = _weights(words, extra_options, k, k.shape[1])
        return (n, k, v) if weights is None else (n, k, v * weights[..., None])

    return patch


def _around(words: _Words, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    part = words.part

    def override(
        func: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attention = partial(behind(func, before), q, k)
        options = kwargs.get("transformer_options") or {}
        weights = _weights_of_keys(words, q, k, options)
        if weights is None:
            return attention(v, heads, mask=mask, **kwargs)
        if part.renormalise:
            changed = attention(v, heads, mask=_bias(weights, q, mask), **kwargs)
        else:
            changed = attention(v * _wide(weights, v, kwargs), heads, mask=mask, **kwargs)
        if part.region is None:
            return changed
        where = _region(words, options, len(q), q.shape[-2]).to(changed)
        return torch.lerp(attention(v, heads, mask=mask, **kwargs), changed, where[..., None])

    return override


def _weights_of_keys(words: _Words, q: Tensor, k: Tensor, options: Mapping[str, Any]) -> Tensor | None:
    """Weights `[b, keys]` for an attention; None where it is of no words, or the part does not act."""
    many, block = k.shape[-2], options.get("block")
    if words.keys is None:
        crosses = block is not None and block[0] in words.part.blocks and q.shape[-2] != many
        return _weights(words, options, k, many) if crosses else None
    batch: _Batch | None = options.get(_BATCH)
    place = None if batch is None else _place(words.keys, batch, q.shape[-2], many, options)
    if batch is None or place is None:
        return None
    weights = _weights(words, options, k, batch.tokens)
    if weights is None:
        return None
    return functional.pad(weights, (place, many - place - batch.tokens), value=1.0)


def _place(keys: TextKeys, batch: _Batch, asking: int, many: int, options: Mapping[str, Any]) -> int | None:
    """The first token's place among an attention's keys; None where it is to the picture or to the prompt alone.

    Args:
        asking, many: how many look, and at how many.

    Raises:
        GuardError: cross-attention cannot be told from another.
    """
    if not keys.joint:
        if many != batch.tokens or (keys.alone and "block_type" not in options):
            return None
        if asking == many:
            raise GuardError(
                f"The picture has as many places as its prompt has tokens ({many}), so words cannot be told from them.",
                "Change the size of the picture.",
            )
        return 0
    if asking != many:
        return None
    tokens = keys.before + batch.tokens
    if keys.marked:
        both = many > tokens and "block_type" in options
    else:
        both = keys.always or many == tokens + batch.places(keys.patch)
    if not both:
        return None
    # Some models leave padding out, which stands at the end.
    return max(many - batch.tokens, batch.places(keys.patch)) if keys.behind else keys.before


def _weights(words: _Words, options: Mapping[str, Any], k: Tensor, tokens: int) -> Tensor | None:
    """Weights `[b, tokens]` for the rows of a batch; None where the part does not act."""
    run: Sampling | None = options.get(words.key)
    if run is None or not words.part.window.holds(run.moment(options)):
        return None
    key = words.guard, *options["uuids"], len(k), tokens, k.device, k.dtype
    if key not in run.made:
        run.made[key] = _made(words, run, options["uuids"], k, tokens)
    return run.made[key]


def _made(words: _Words, run: Sampling, uuids: Sequence[UUID], k: Tensor, tokens: int) -> Tensor | None:
    own = [run.weights(words.guard, uuid) for uuid in uuids]
    if all(weights is None for weights in own):
        return None
    count = len(k) // len(uuids)
    zeros = words.keys is not None and words.keys.zeros
    rows = [torch.ones(count, tokens) if w is None else _spread(w, count, tokens, zeros) for w in own]
    return torch.cat(rows).to(k)


def _spread(weights: Tensor, count: int, tokens: int, zeros: bool) -> Tensor:
    """Weights of a condition for every picture of a batch; `TextKeys` says what `zeros` is."""
    times = 1 if zeros else tokens // weights.shape[1]
    front = tokens - times * weights.shape[1]
    rows = weights.repeat(-(-count // len(weights)), times)[:count]
    return functional.pad(rows, (front, 0), value=1.0)


def _wide(weights: Tensor, v: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Weights `[b, keys]` to go with values, which have their heads before or behind the keys, or in their width."""
    if v.ndim == 3:
        return weights[..., None]
    return weights[:, None, :, None] if given.get("skip_reshape") else weights[..., None, None]


def _bias(weights: Tensor, q: Tensor, mask: Tensor | None) -> Tensor:
    bias = weights.log()[:, None].expand(-1, q.shape[-2], -1)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return (bias if mask.ndim < 4 else bias[:, None]) + mask


def _region(words: _Words, options: Mapping[str, Any], count: int, asking: int) -> Tensor:
    """The region at an attention's queries, `[count, asking]`; what is no place of the picture is outside."""
    assert words.part.region is not None
    batch: _Batch | None = options.get(_BATCH)
    front = back = 0
    if batch is not None and words.keys is not None and words.keys.joint:
        front = words.keys.before + batch.tokens + -batch.tokens % words.keys.multiple
        back = -batch.places(words.keys.patch) % words.keys.multiple
        if words.keys.behind:
            front, back = 0, min(batch.tokens, asking - batch.places(words.keys.patch))
    sized = options if batch is None else {**options, "original_shape": batch.shape}
    size = feature_size(sized, asking - front - back)
    run: Sampling = options[words.key]
    shape = sized["original_shape"][-2], sized["original_shape"][-1]
    seen = [run.areas.part(words.part.region, uuid, shape) for uuid in options["uuids"]]
    rows = [functional.interpolate(own[None, None].float(), size=size, mode="area").flatten() for own in seen]
    found = functional.pad(torch.stack(rows), (front, back))
    return found.repeat_interleave(count // len(rows), 0)
