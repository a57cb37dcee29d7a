"""Members behind gates beside real layers, against the sum written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from lethe.erasers.algebra.hooks import hooked
from lethe.erasers.errors import NumericsError
from lethe.erasers.gated import GatedParts
from lethe.erasers.result import Bottleneck, ContextOperator, Eraser, Member, Recipe, WeightEdit
from torch import Tensor, nn

WIDTH, OUT = 6, 5
RECIPE = Recipe("toy", {}, (), (), "demo", "toy")


@dataclass(frozen=True)
class First:
    """Opens by the first feature of the first token."""

    kind: ClassVar[str] = "first"
    reads_tokens: ClassVar[bool] = False
    threshold: float = 0.0
    width: int = WIDTH

    def openness(self, states: Tensor, ids: object = ()) -> float:
        return max(0.0, float(states[0, 0]))

    def tensors(self) -> dict[str, Tensor]:
        return {}


class Place(First):
    """Opens by a feature of its own."""

    def __init__(self, place: int) -> None:
        super().__init__()
        object.__setattr__(self, "place", place)

    def openness(self, states: Tensor, ids: object = ()) -> float:
        return max(0.0, float(states[0, self.place]))  # type: ignore[attr-defined]


def low(seed: int, rank: int = 1, width: int = WIDTH, out: int = OUT) -> WeightEdit:
    g = torch.Generator().manual_seed(seed)
    return WeightEdit(down=torch.randn(rank, width, generator=g), up=torch.randn(out, rank, generator=g))


def parts_of(*erasers: Eraser, strengths: tuple[float, ...] = ()) -> GatedParts:
    given = strengths or (1.0,) * len(erasers)
    return GatedParts([(Member(Place(i), own), s) for i, (own, s) in enumerate(zip(erasers, given, strict=True))])


def opened(parts: GatedParts, gates: list[list[float]]) -> object:
    states = torch.zeros(len(gates), 2, WIDTH)
    states[:, 0, : len(gates[0])] = torch.tensor(gates)
    return parts.at_work(parts.openness(states, ()), torch.device("cpu"), torch.float32)


def test_many_members_beside_a_linear_layer_are_the_gated_sum_of_their_products() -> None:
    layer = nn.Linear(WIDTH, OUT)
    edits = [
        low(1),
        low(2, rank=2),
        WeightEdit(dense=torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(3))),
    ]
    parts = parts_of(*(Eraser(RECIPE, adapters={"l.weight": edit}) for edit in edits), strengths=(1.0, -0.5, 2.0))
    gates = [[0.3, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(4))
    at_work = opened(parts, gates)
    with torch.no_grad(), hooked(at_work.hooks({"l": layer}.__getitem__)):  # type: ignore[attr-defined]
        found = layer(x)
    plain = layer(x)
    for row, own in enumerate(gates):
        delta = sum(g * s * e.delta((OUT, WIDTH)) for g, s, e in zip(own, (1.0, -0.5, 2.0), edits, strict=True))
        assert torch.allclose(found[row], plain[row] + x[row] @ delta.T, atol=1e-5)
    assert torch.equal(found[1], plain[1])


def test_a_convolution_and_a_batch_that_holds_rows_several_times() -> None:
    layer = nn.Conv2d(3, OUT, 3, padding=1, stride=2)
    edit = low(5, rank=2, width=27)
    parts = parts_of(Eraser(RECIPE, adapters={"c.weight": edit}))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    at_work = opened(parts, [[0.5], [0.0]])
    with torch.no_grad(), hooked(at_work.hooks({"c": layer}.__getitem__)):  # type: ignore[attr-defined]
        found = layer(x)
    moved = nn.functional.conv2d(x, edit.delta((OUT, 3, 3, 3)), None, 2, 1)
    assert torch.allclose(found[:2], (layer(x) + 0.5 * moved)[:2], atol=1e-5)
    assert torch.allclose(found[2:], layer(x)[2:], atol=1e-6)


def test_operators_act_one_after_the_other_in_their_own_rows() -> None:
    operators = [ContextOperator(down=low(i).down, up=low(i, out=WIDTH).up, bias=torch.ones(WIDTH)) for i in range(2)]
    parts = parts_of(*(Eraser(RECIPE, context={"clip_l": operator}) for operator in operators), strengths=(1.0, 0.5))
    features = torch.randn(2, 4, WIDTH + 2, generator=torch.Generator().manual_seed(7))
    at_work = opened(parts, [[1.0, 0.4], [0.0, 0.0]])
    found = at_work.edit(features, "clip_l")  # type: ignore[attr-defined]
    own = operators[0].apply(features[:1, :, :WIDTH])
    own = own + 0.2 * (operators[1].apply(own) - own)
    assert torch.allclose(found[:1, :, :WIDTH], own, atol=1e-5)
    assert torch.equal(found[1], features[1])
    assert torch.equal(found[:, :, WIDTH:], features[:, :, WIDTH:])
    assert at_work.edit(features, "other") is features  # type: ignore[attr-defined]


def test_a_row_whose_gate_is_shut_is_untouched_by_what_overflows() -> None:
    huge = ContextOperator(down=torch.full((1, WIDTH), 1e30), up=torch.full((WIDTH, 1), 1e30))
    features = torch.ones(2, 4, WIDTH)
    found = opened(parts_of(Eraser(RECIPE, context={"clip_l": huge})), [[1.0], [0.0]]).edit(features, "clip_l")  # type: ignore[attr-defined]
    assert torch.equal(found[1], features[1])


def test_small_networks_are_gated_too() -> None:
    g = torch.Generator().manual_seed(8)
    own = Bottleneck(*(torch.randn(*shape, generator=g) for shape in ((2, OUT), (2,), (OUT, 2), (OUT,))))
    layer = nn.Linear(WIDTH, OUT)
    at_work = opened(parts_of(Eraser(RECIPE, modules={"a": own})), [[0.25], [0.0]])
    x = torch.randn(2, 3, WIDTH, generator=g)
    with torch.no_grad(), hooked(at_work.hooks({"a.to_out.0": layer}.__getitem__)):  # type: ignore[attr-defined]
        found = layer(x)
    plain = layer(x)
    assert torch.allclose(found[0], plain[0] + 0.25 * (own.apply(plain[0]) - plain[0]), atol=1e-5)
    assert torch.equal(found[1], plain[1])


def test_only_open_members_take_part_and_none_where_all_are_shut() -> None:
    parts = parts_of(*(Eraser(RECIPE, adapters={"l.weight": low(i)}) for i in range(WIDTH)))
    assert opened(parts, [[0.0] * 6]) is None
    at_work = opened(parts, [[0.0, 0.0, 1.0, 0.0, 0.0, 0.5]])
    assert at_work.gates.tolist() == [[1.0, 0.5]]  # type: ignore[attr-defined]
    assert at_work.open.layers["l"].down.shape == (2, WIDTH)  # type: ignore[attr-defined]


def test_what_would_act_before_its_gate_is_refused() -> None:
    text = Eraser(RECIPE, text_encoder={"clip_l.x": low(1)})
    with pytest.raises(NumericsError, match="behind a gate"):
        Eraser(RECIPE, members=(Member(First(), text),))
    inner = Eraser(RECIPE, members=(Member(First(), Eraser(RECIPE, adapters={"l.weight": low(1)})),))
    with pytest.raises(NumericsError, match="behind a gate"):
        Eraser(RECIPE, members=(Member(First(), inner),))
