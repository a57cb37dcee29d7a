"""Erasers behind gates at work: which of them act on a batch, and how, in any host.

Of all members only those whose gates are open for a row of the batch take part. Their factors lie side by side, so that
each layer runs one low-rank product however many there are:

    y_r = W x_r + sum_i g_ri s_i B_i A_i x_r = W x_r + B_cat (g_r * (A_cat x_r))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.stacked import stacked
from .algebra.hooks import Hook, Output, states_of
from .result import Bottleneck, ContextOperator, Member, WeightEdit

_KEPT = 8
"""Sets of open gates whose factors are kept at hand."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """What open members do to one layer: `down` `[R, d]` and `up` `[o, R]` of all, and whose each rank is, `[R]`."""

    down: Tensor
    up: Tensor
    owners: Tensor


@dataclass(frozen=True, eq=False)
class _Open:
    """The open members' parts on a device; every list is by place among the open members."""

    layers: Mapping[str, _Layer]
    operators: Mapping[str, list[tuple[int, ContextOperator]]]
    modules: Mapping[str, list[tuple[int, Bottleneck]]]


@dataclass(eq=False)
class GatedParts:
    """Members with a strength each, in the order they act.

    Attributes:
        members: the members and their strengths.
    """

    members: Sequence[tuple[Member, float]]
    _made: dict[tuple[tuple[int, ...], torch.device, torch.dtype], _Open] = field(default_factory=dict)

    @property
    def reads_tokens(self) -> bool:
        """Whether a gate wants the prompts' token ids."""
        return any(member.gate.reads_tokens for member, _ in self.members)

    @torch.no_grad()
    def openness(self, states: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        """How far each gate opens for prompts.

        Args:
            states: `[rows, tokens, d]`, as they leave the text encoder.
            ids: the token ids of each row, or of one for all; empty where they are not known.

        Returns:
            `[rows, members]` float32 on the CPU.
        """
        given = [ids[row % len(ids)] if ids else () for row in range(len(states))]
        rows = [
            [member.gate.openness(own, tokens) for member, _ in self.members]
            for own, tokens in zip(states.detach(), given, strict=True)
        ]
        return torch.tensor(rows)

    def at_work(self, openness: Tensor, device: torch.device, dtype: torch.dtype) -> AtWork | None:
        """The members that act on a batch with gates `[rows, members]`; None where all are shut."""
        places = tuple(openness.any(0).nonzero()[:, 0].tolist())
        if not places:
            return None
        key = places, device, dtype
        if key not in self._made:
            while len(self._made) >= _KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[key] = _opened([self.members[place][0] for place in places], device, dtype)
        strengths = torch.tensor([self.members[place][1] for place in places])
        return AtWork(self._made[key], (openness[:, list(places)] * strengths).to(device))


@dataclass(frozen=True, eq=False)
class AtWork:
    """Open members in one pass of a batch, with their gates times strengths, `[rows, open]`."""

    open: _Open
    gates: Tensor

    def edit(self, features: Tensor, stream: str) -> Tensor:
        """Text features `[rows, ..., d]` with the open operators of a stream applied, one after the other."""
        for place, operator in self.open.operators.get(stream, ()):
            own = features[..., : operator.width]
            gate = self.gates[:, place].view(-1, *[1] * (features.ndim - 1)).to(own.dtype)
            moved = own + gate * (operator.apply(own) - own)
            # Rows whose gate is shut keep their very bits, whatever zero times a large number rounds to.
            moved = torch.where(gate != 0, moved, own)
            features = torch.cat([moved, features[..., operator.width :]], dim=-1)
        return features

    def hooks(self, layer_of: Callable[[str], nn.Module]) -> list[tuple[nn.Module, Hook]]:
        """Forward hooks for `algebra.hooks.hooked`.

        Args:
            layer_of: a layer by its name in erasers.
        """
        found = [(layer_of(name), _adapting(own, self.gates)) for name, own in self.open.layers.items()]
        beside = ((f"{name}.to_out.0", own) for name, own in self.open.modules.items())
        return [*found, *((layer_of(name), _beside(own, self.gates)) for name, own in beside)]


def _opened(members: Sequence[Member], device: torch.device, dtype: torch.dtype) -> _Open:
    names = dict.fromkeys(name for member in members for name in member.eraser.adapters)
    layers = {name.removesuffix(".weight"): _layer(name, members, device, dtype) for name in names}
    operators: dict[str, list[tuple[int, ContextOperator]]] = {}
    modules: dict[str, list[tuple[int, Bottleneck]]] = {}
    for place, member in enumerate(members):
        for stream, operator in member.eraser.context.items():
            operators.setdefault(stream, []).append((place, operator.to(device)))
        for name, own in member.eraser.modules.items():
            modules.setdefault(name, []).append((place, own.to(device)))
    return _Open(layers, operators, modules)


def _layer(name: str, members: Sequence[Member], device: torch.device, dtype: torch.dtype) -> _Layer:
    downs, ups, owners = [], [], []
    for place, member in enumerate(members):
        if name not in member.eraser.adapters:
            continue
        down, up = _factors(member.eraser.adapters[name])
        downs.append(down)
        ups.append(up)
        owners += [place] * len(down)
    return _Layer(
        torch.cat(downs).to(device, dtype),
        torch.cat(ups, dim=1).to(device, dtype),
        torch.tensor(owners, device=device),
    )


def _factors(edit: WeightEdit) -> tuple[Tensor, Tensor]:
    """`down` `[r, d]` and `up` `[o, r]`, exactly; a whole difference is its own factor on its smaller side."""
    if edit.down is not None and edit.up is not None:
        return edit.down, edit.up
    assert edit.dense is not None
    out, width = edit.dense.shape
    return (edit.dense, torch.eye(out)) if out <= width else (torch.eye(width), edit.dense)


def _adapting(own: _Layer, gates: Tensor) -> Hook:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Tensor:
        assert isinstance(output, Tensor)
        x = args[0]
        each = _each_row(gates, len(x)).to(x.dtype)[:, own.owners]
        if not isinstance(module, nn.Conv2d):
            return stacked(x, output, own.down.to(x.dtype), own.up.to(x.dtype), each)
        kernel = own.down.to(x.dtype).view(len(own.down), -1, *module.kernel_size)
        inner = functional.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
        return output + functional.conv2d(inner * each[:, :, None, None], own.up.to(x.dtype)[:, :, None, None])

    return add


def _beside(own: Sequence[tuple[int, Bottleneck]], gates: Tensor) -> Hook:
    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Tensor:
        states = states_of(output)
        each = _each_row(gates, len(states)).to(states.dtype)
        moves = [(each[:, place, None, None], one.apply(states) - states) for place, one in own]
        return states + sum(gate * move for gate, move in moves)

    return add


def _each_row(gates: Tensor, rows: int) -> Tensor:
    """Gates for every row of a layer's batch, which may hold each row of the model's batch several times in a row."""
    return gates if len(gates) == rows else gates.repeat_interleave(rows // len(gates), dim=0)
