"""What the operations are measured on: shapes of real models, random numbers, and the rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional

from ..constraints import Facts
from ..dispatch import Operation, forced
from ..gram import OPERATION as GRAM
from ..gram import accumulate_
from ..grouped import OPERATION as GROUPED
from ..grouped import add_low_rank_, keep, restore_
from ..reweighted import OPERATION as REWEIGHTED
from ..reweighted import Read, reweighted
from ..stacked import OPERATION as STACKED
from ..stacked import stacked
from .machine import Machine

BATCH, TOKENS = 2, 77
COUNTS, RANKS = (1, 8, 32, 100), (1, 4)
PROJECTIONS = {"SD1.5": (768, 1280), "SDXL": (2048, 1280)}
MAPS = {"4096 x 77, 8 heads of 40": (4096, 8, 40), "1024 x 77, 20 heads of 64": (1024, 20, 64)}
BLOCKS = {"SD1.5": (768, {320: 10, 640: 10, 1280: 12}), "SDXL": (2048, {640: 20, 1280: 120})}
"""Width of the text features, and how many projections of which output width a model has."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        title: shapes in words.
        flops: operations that the result needs.
        moved: bytes that have to be read and written at least once.
        work: by name, backends of ours first, then rivals that do the same.
        beside: by name, work that does less, to compare with.
    """

    title: str
    flops: float
    moved: float
    work: Mapping[str, Callable[[], object]]
    beside: Mapping[str, Callable[[], object]]


def cases(operation: str, on: Machine, compiled: bool) -> Iterator[Case]:
    """The cases of an operation; with rivals through torch.compile if asked."""
    return {"stacked": _stacked, "grouped": _grouped, "reweighted": _reweighted, "gram": _gram}[operation](on, compiled)


def _backends(operation: Operation, facts: Facts, run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The same call on every backend that can do it."""

    def on(name: str) -> object:
        with forced(**{operation.name: name}):
            return run()

    able = [backend.name for backend in operation.backends if backend.failing(facts, forced=True) is None]
    return {name: partial(on, name) for name in able}


def _random(on: Machine, *size: int) -> Tensor:
    return torch.randn(size).to(on.device, on.dtype)


def _stacked(on: Machine, compiled: bool) -> Iterator[Case]:
    facts = Facts(on.device, frozenset({on.dtype}))
    for model, (width, out) in PROJECTIONS.items():
        x, weight = _random(on, BATCH, TOKENS, width), _random(on, out, width)
        for rank in RANKS:
            for count in COUNTS:
                total, rows = count * rank, BATCH * TOKENS
                down, up, gates = _random(on, total, width), _random(on, out, total), torch.rand(BATCH, total)
                given = (x, weight, down, up, gates.to(on.device))

                def ours(given: tuple[Tensor, ...] = given) -> Tensor:
                    x, weight, down, up, gates = given
                    return stacked(x, functional.linear(x, weight), down, up, gates)

                work = _backends(STACKED, facts, ours)
                beside = {"plain projection": partial(functional.linear, x, weight)}
                work["einsum loop"] = partial(_loop, *given, rank)
                work["peft"] = partial(_peft(weight, count, rank), x)
                if compiled:
                    work["torch.compile"] = partial(torch.compile(_plain, dynamic=False), *given)
                flops = 2 * rows * (width * out + total * (width + out))
                moved = on.dtype.itemsize * (rows * (width + out) + width * out + total * (width + out))
                title = f"{model} {width} to {out}, {BATCH} x {TOKENS} tokens, {count} of rank {rank}"
                yield Case(title, flops, moved, work, beside)
        for count in COUNTS:
            yield _pair(on, model, width, out, count)


def _pair(on: Machine, model: str, width: int, out: int, count: int) -> Case:
    """What adapters of rank 1 add to K and V, which read the same: two calls, or less of the product with A."""
    x, key, value = _random(on, BATCH, TOKENS, width), *(_random(on, BATCH, TOKENS, out) for _ in range(2))
    downs, ups = [_random(on, count, width) for _ in range(2)], [_random(on, out, count) for _ in range(2)]
    both, side, fused = torch.cat(downs), torch.cat(ups), torch.cat([key, value], -1)
    gates = torch.rand(BATCH, count).to(on.device)

    def calls() -> list[Tensor]:
        return [stacked(x, y, down, up, gates) for y, down, up in zip((key, value), downs, ups, strict=True)]

    def together() -> list[Tensor]:
        inner = ((x @ both.T).unflatten(-1, (2, count)) * gates[:, None, None]).to(x).unbind(2)
        return [y + own @ up.T for y, own, up in zip((key, value), inner, ups, strict=True)]

    work = {"two calls": calls, "A of both in one product": together}
    beside = {"one A for both, outputs side by side": partial(stacked, x, fused, downs[0], side, gates)}
    flops, moved = 4 * BATCH * TOKENS * count * (width + out), 4 * BATCH * TOKENS * out + 2 * count * (width + out)
    title = f"{model} {width} to {out}, K and V, adapters alone, {count} of rank 1"
    return Case(title, flops, on.dtype.itemsize * (moved + x.numel()), work, beside)


def _plain(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, gates: Tensor) -> Tensor:
    return x @ weight.T + ((x @ down.T) * gates[:, None].to(x)) @ up.T


def _loop(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, gates: Tensor, rank: int) -> Tensor:
    y = functional.linear(x, weight)
    for at in range(0, len(down), rank):
        own = slice(at, at + rank)
        inner = torch.einsum("btd,rd->btr", x, down[own]) * gates[:, None, own].to(x)
        y = y + torch.einsum("btr,or->bto", inner, up[:, own])
    return y


def _peft(weight: Tensor, count: int, rank: int) -> Any:
    """peft's own layer with all adapters active; it has one gate per adapter, not one per row."""
    base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight)
    names = [f"a{i}" for i in range(count)]
    layer = Linear(base, names[0], config=LoraConfig(r=rank, lora_alpha=rank), r=rank, lora_alpha=rank)
    for name in names[1:]:
        layer.update_layer(name, rank, rank, config=LoraConfig(r=rank, lora_alpha=rank))
    layer.set_adapter(names)
    return layer.to(weight).eval()


def _grouped(on: Machine, compiled: bool) -> Iterator[Case]:
    models = BLOCKS if on.device.type == "cuda" else {"SD1.5": BLOCKS["SD1.5"]}
    for model, (width, counts) in models.items():
        for dtype in (torch.float16, torch.float32):
            for rank in (1, 16):
                shapes = [(out, width) for out, count in counts.items() for _ in range(count)]
                weights = [torch.randn(shape).to(on.device, dtype) for shape in shapes]
                downs = [torch.randn(rank, width).to(on.device, dtype)] * len(shapes)
                ups = [torch.randn(out, rank).to(on.device, dtype) for out, _ in shapes]
                kept = keep(weights)
                change = partial(add_low_rank_, weights, downs, ups, 0.5, kept)
                work = _backends(GROUPED, Facts(on.device, frozenset({dtype})), change)
                work["layer by layer"] = partial(_layers, weights, kept, downs, ups)
                beside = {"restore": partial(restore_, weights, kept)}
                size = sum(weight.numel() for weight in weights)
                title = f"{model}, {len(shapes)} projections, {dtype}, rank {rank}"
                yield Case(title, 2 * rank * size, 2 * size * dtype.itemsize, work, beside)


def _layers(weights: list[Tensor], kept: list[Tensor], downs: list[Tensor], ups: list[Tensor]) -> None:
    for weight, source, down, up in zip(weights, kept, downs, ups, strict=True):
        weight.copy_(source + 0.5 * (up @ down))


def _reweighted(on: Machine, compiled: bool) -> Iterator[Case]:
    for title, (queries, heads, width) in MAPS.items():
        q = _random(on, BATCH, heads, queries, width)
        k, v = (_random(on, BATCH, heads, TOKENS, width) for _ in range(2))
        bias, scale = (torch.rand(BATCH, TOKENS, device=on.device) for _ in range(2))
        chosen = torch.zeros(BATCH, 1, TOKENS, dtype=torch.bool, device=on.device)
        chosen[..., 4:7] = True
        reads = {"none": None, "sum": Read(chosen), "max": Read(chosen, "max")}
        for how, read in reads.items():
            facts = Facts(on.device, frozenset({on.dtype}), {"groups": 1, "head width": width}, {"read": how})
            work = _backends(REWEIGHTED, facts, partial(reweighted, q, k, v, bias, scale, read))
            beside = {"SDPA, nothing weighted or read": partial(functional.scaled_dot_product_attention, q, k, v)}
            work["map kept"] = partial(_map, q, k, v, bias, scale, chosen)
            if compiled:
                work["torch.compile"] = partial(torch.compile(_map, dynamic=False), q, k, v, bias, scale, chosen)
            flops = 4 * BATCH * heads * queries * TOKENS * width
            moved = 2 * on.dtype.itemsize * BATCH * heads * (queries + TOKENS) * width
            yield Case(f"{title}, batch {BATCH}, read {how}", flops, moved, work, beside)


def _map(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    logits = torch.einsum("bhne,bhte->bhnt", q, k) / q.shape[-1] ** 0.5 + bias[:, None, None].to(q)
    p = logits.softmax(-1)
    out = torch.einsum("bhnt,bhte->bhne", p * scale[:, None, None].to(q), v)
    return out, (p * chosen[:, :1, None]).sum(-1)


def _gram(on: Machine, compiled: bool) -> Iterator[Case]:
    for width in (768, 2048):
        rows, weights = _random(on, 8192, width), torch.rand(8192, device=on.device)
        gram = torch.zeros(width, width, dtype=torch.float64, device=on.device)
        facts = Facts(on.device, frozenset({on.dtype}))
        work = _backends(GRAM, facts, partial(accumulate_, gram, rows, weights))
        beside = {"products in float32": partial(_narrow, gram, rows, weights)}
        moved = rows.numel() * rows.element_size() + 16 * width**2
        yield Case(f"8192 rows of width {width}, float64 sums", rows.shape[0] * width**2, moved, work, beside)


def _narrow(gram: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    wide = rows.float()
    return gram.add_((wide * weights[:, None]).T @ wide)
