"""Cross-attention probabilities, with gradients: what a denoiser looks at in its prompt.

Hosts' attention gives no probabilities. So queries and keys are kept as they leave their layers, with what is
trained there already in them, and A = softmax(q k^T / sqrt(d)) is computed of them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..algebra.hooks import Hook, Output, hooked, states_of
from ..errors import FamilyError
from .moment import Latents
from .run import Run

_LAYERS = r"\.attn2\.to_[qk]$"
_INSIDE = r"\.attn2\.to_(?:[qkv]|out\.0)$"
_CLOSE = 0.05
"""A layer's output made again may be this far from its own, as a share; half precision is ten times closer."""
_PLACES = 64
"""Pixels that are enough to tell a layer's number of heads."""
_HEADS = object()


class Attention:
    """Queries `[n, pixels, c]` and keys `[n, tokens, c]` of every cross-attention that passed, by its name.

    Args:
        heads: the number of heads by name.
    """

    def __init__(self, heads: Mapping[str, int]) -> None:
        self.heads = heads
        self.passed: dict[str, list[Tensor]] = {}

    def see(self, name: str) -> Hook:
        """The hook for one layer. It computes nothing: a checkpointed block runs again without it."""

        def keep(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> None:
            self.passed.setdefault(name, []).append(states_of(output))

        return keep

    def maps(self) -> dict[str, Tensor]:
        """Probabilities `[n, heads, pixels, tokens]` float32 by name."""
        joined = {name: torch.cat(parts) for name, parts in self.passed.items()}
        return {
            name: probabilities(joined[f"{name}.to_q"], joined[f"{name}.to_k"], heads)
            for name, heads in self.heads.items()
        }


@contextmanager
def watching(run: Run) -> Iterator[Attention]:
    """Keep the queries and keys of the predictions that are made while the block runs.

    Raises:
        FamilyError: the model has no cross-attention that can be looked at.
    """
    attention = Attention(run.once(_HEADS, lambda: _heads(run)))
    with hooked((module, attention.see(name)) for name, module in run.model.modules(_LAYERS).items()):
        yield attention


def probabilities(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) of `[n, p, c]` and `[n, t, c]`, in float32: `[n, heads, p, t]`."""
    with torch.autocast(queries.device.type, enabled=False):
        q, k = (part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys))
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)


def grid(pixels: int, height: int, width: int) -> tuple[int, int]:
    """The rows and columns that so many pixels of a layer form in latents of a height and width."""
    rows = max(1, round(math.sqrt(pixels * height / width)))
    return rows, pixels // rows


@torch.no_grad()
def _heads(run: Run) -> Mapping[str, int]:
    """The number of heads of every cross-attention: the one that makes its output out of what went in.

    Hosts keep that number where they like; what goes in and comes out is the same in all of them.
    """
    passed: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Output) -> None:
            passed[name] = (args[0] if name.endswith("out.0") else states_of(output)).clone()

        return see

    x = torch.randn(1, *run.model.latent_shape(), generator=run.fork("heads"))
    sigma = run.model.level(torch.tensor([0.5]))
    names = run.task.concepts.names
    with hooked((module, keep(name)) for name, module in run.model.modules(_INSIDE).items()):
        run.teacher(Latents(x * (1 + sigma), sigma, ()), run.features(names[:1] or [""]))
    found = {
        owner: _heads_of(*(passed[f"{owner}.{part}"] for part in ("to_q", "to_k", "to_v", "to_out.0")))
        for owner in (name.removesuffix(".to_q") for name in passed if name.endswith(".to_q"))
    }
    if not found:
        raise FamilyError("This model has no cross-attention to look at.", "Choose a recipe that needs none.")
    return found


def _heads_of(queries: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> int:
    width = queries.shape[-1]
    queries, output = queries[:, :_PLACES], output[:, :_PLACES].float()

    def error(heads: int) -> float:
        split = values.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        with torch.autocast(queries.device.type, enabled=False):
            made = (probabilities(queries, keys, heads) @ split).transpose(1, 2).flatten(2)
        return float((made - output).norm() / output.norm().clamp(min=1e-12))

    best = min((heads for heads in range(1, width + 1) if width % heads == 0), key=error)
    if error(best) > _CLOSE:
        raise FamilyError("This model's cross-attention is of an unknown form.", "Choose a recipe without its maps.")
    return best
