"""SAFREE against its equations, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guards.safree import GUARD, Safree, projection
from torch import Tensor
from toy_tower import ToyModel

PROMPT = "red ball lamp tree"


def part(model: ToyModel, **settings: float | bool) -> Safree:
    task = model.task(ConceptList().with_concept(Concept("ball", "box", ("orb",))))
    found = GUARD.plan(task, GUARD.spec.settings(settings))
    assert isinstance(found.text, Safree) and found.reader is found.text
    return found.text


def pooled(model: ToyModel, ids: list[int]) -> Tensor:
    return model.tower().encode([ids])[0][0, ids.index(model.tower().end, 1)].double()


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel()


def test_the_concepts_directions_are_gone(model: ToyModel) -> None:
    away = part(model).away
    for name in ("ball", "orb"):
        assert float((pooled(model, model.ids(name)) @ away).norm()) < 1e-8
    assert torch.allclose(away @ away, away, atol=1e-9)
    assert int(torch.linalg.matrix_rank(away)) == away.shape[0] - 2


def test_triggers_and_their_move_are_the_papers(model: ToyModel) -> None:
    safree, ids = part(model, alpha=0.01), model.ids(PROMPT)
    hidden = [pooled(model, [*ids[:i], 0, *ids[i + 1 :]]) for i in range(1, 5)]
    distance = [float((own @ safree.away).norm()) for own in hidden]
    wanted = [i + 1 for i, d in enumerate(distance) if d >= 1.01 * (sum(distance) - d) / 3]
    reading = safree.read([ids])
    assert reading.rows.tolist() == wanted and 0 < len(wanted) < 4
    stands_out = max(d * 3 / (sum(distance) - d) for d in distance) - 1
    assert len(part(model, alpha=stands_out - 1e-4).read([ids]).rows) == 1
    assert not len(part(model, alpha=stands_out + 1e-4).read([ids]).rows)
    span = torch.stack(hidden, 1)
    onto = span @ torch.linalg.inv(span.T @ span) @ span.T
    states = model.tower().encode([ids])[0][0]
    moved = safree.edit(states, reading)
    for row in range(len(ids)):
        own = states[row].double()
        expected = safree.away @ (onto @ own) if row in wanted else own
        assert torch.allclose(moved[row].double(), expected, atol=1e-4)


def test_the_edit_lasts_as_long_as_it_would_change(model: ToyModel) -> None:
    ids = model.ids(PROMPT)
    safree = part(model, longest=0.5, steep=2.5, middle=5.333)
    reading = safree.read([ids])
    states = model.tower().encode([ids])[0][0, 1:5].double()
    moved = states @ reading.move
    changed = 1 - sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(moved, states, strict=True)) / 4
    assert reading.until == pytest.approx(0.5 / (1 + math.exp(-2 * 2.5 * (10 * changed - 5.333))))
    assert safree.holds(reading, reading.until - 1e-6) and not safree.holds(reading, reading.until)
    assert part(model, adaptive=False).read([ids]).until == 1.0


def test_chunks_are_read_one_by_one_and_empty_ones_not_at_all(model: ToyModel) -> None:
    safree, ids, empty = part(model), model.ids(PROMPT), model.ids("")
    alone = safree.read([ids]).rows
    assert safree.read([empty, ids]).rows.tolist() == (alone + len(empty)).tolist()
    nothing = safree.read([empty])
    assert not safree.holds(nothing, 0.0)
    one = safree.read([model.ids("ball")])
    assert len(one.rows) in (0, 1) and bool(one.move.isfinite().all())


def test_a_projection_is_onto_the_span(model: ToyModel) -> None:
    rows = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = projection(rows)
    assert torch.allclose(found @ rows.T, rows.T, atol=1e-9)
    assert torch.allclose(found, found.T, atol=1e-9) and float(found.trace()) == pytest.approx(3)
