"""T2I-Zero's correction by similarities against its equation, and which tokens it finds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, FamilyError
from lethe.erasers.guards.t2i_zero import GUARD, Corrected, Named, corrected
from lethe.erasers.nudge import Words
from lethe.erasers.registry import families
from torch import Tensor
from toy_tower import TOKENS, ToyModel

NAMES = ConceptList().with_concept(Concept("ball", "box", ("old-orb",)))


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel()


def part(model: ToyModel, **given: float | str) -> Corrected:
    found = GUARD.plan(model.task(NAMES), GUARD.spec.settings(given))
    assert isinstance(found.text, Corrected) and found.reader is found.text
    return found.text


def by_hand(f: Tensor, c: int, alpha: float, q: float, window: int) -> Tensor:
    """One corrected row, entry by entry."""
    products = [[float(f[c, i] * f[j, i]) for i in range(f.shape[1])] for j in range(len(f))]
    every = sorted(value for row in products for value in row)
    place = q * (len(every) - 1)
    low = math.floor(place)
    edge = every[low] + (place - low) * (every[min(low + 1, len(every) - 1)] - every[low])
    mixed = torch.zeros(f.shape[1])
    for j, row in enumerate(products):
        for i, value in enumerate(row):
            if value >= edge and abs(j - c) <= window:
                mixed[i] += value / every[-1] * f[j, i]
    return (1 - alpha) * f[c] + alpha * mixed


@pytest.mark.parametrize(("alpha", "q", "window"), [(1.0, 0.8, 2), (0.4, 0.5, 1), (0.7, 0.0, 30)])
def test_a_row_is_corrected_as_published(alpha: float, q: float, window: int) -> None:
    f = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    found = corrected(f, [1, 4, 8], alpha, q, window)
    for row in range(9):
        expected = by_hand(f, row, alpha, q, window) if row in (1, 4, 8) else f[row]
        assert torch.allclose(found[row], expected, atol=1e-5)
    assert torch.equal(corrected(f, [], alpha, q, window), f)
    assert corrected(f.half(), [2], alpha, q, window).dtype == torch.float16


def test_it_finds_the_names_chunk_by_chunk(model: ToyModel) -> None:
    own, tail = part(model), part(model, where="tail")
    chunks = [model.ids("a red cat"), model.ids("a ball or old orb"), model.ids("an orb, old")]
    assert own.read(chunks) == Named(([], [2, 4, 5], []), (TOKENS,) * 3)
    assert tail.read(chunks) == Named(([], list(range(2, TOKENS)), []), (TOKENS,) * 3)
    assert own.read([chunks[0], [98, torch.zeros(16), 99]]) is None
    assert own.quantile == pytest.approx(1 - math.exp(-5)) and own.reach == 2


def test_each_chunk_is_corrected_alone_and_again_where_the_host_repeats(model: ToyModel) -> None:
    own = part(model, threshold=0.1)
    chunks = [model.ids("a red cat"), model.ids("a ball here")]
    states = model.read(chunks)[0].flatten(0, 1)
    reading = own.read(chunks)
    assert reading is not None
    once = own.edit(states, reading)
    assert torch.equal(once[:TOKENS], states[:TOKENS])
    assert torch.allclose(once[TOKENS + 2], by_hand(states[TOKENS:], 2, 1.0, own.quantile, 2), atol=1e-4)
    assert torch.equal(own.edit(states.repeat(2, 1), reading), once.repeat(2, 1))


def test_it_acts_in_its_window_where_there_is_a_name_and_a_strength(model: ToyModel) -> None:
    late, none = part(model, start=0.5), part(model, alpha=0.0)
    reading = late.read([model.ids("ball")])
    assert late.holds(reading, 0.5) and not late.holds(reading, 0.4) and not late.holds(None, 0.5)
    assert not none.holds(reading, 0.5)
    with pytest.raises(ConceptError, match="reads nothing"):
        GUARD.plan(model.task(ConceptList().with_concept(Concept("-"))), GUARD.spec.settings({}))


def test_suppression_is_off_until_it_is_asked_for_and_needs_a_unet(model: ToyModel) -> None:
    names = [parameter.name for parameter in GUARD.spec.parameters]
    assert names == ["alpha", "where", "threshold", "window", "start", "end", "suppression"]
    plan, task = GUARD.plan(model.task(NAMES), GUARD.spec.settings({})), model.task(NAMES)
    assert plan.rivals is None
    on = GUARD.spec.settings({"suppression": 0.7, "start": 0.2})
    found = GUARD.plan(task, on)
    assert found.rivals is not None and found.rivals.share == 0.7 and not found.rivals.window.holds(0.1)
    assert found.reader is not None
    reading = found.reader.read([model.ids("a red cat"), model.ids("a ball or old orb")])
    places = (1, 2, 3, *(TOKENS + place for place in range(1, 6)))
    assert reading.words == Words(places, (*[False] * 4, True, False, True, True), 2 * TOKENS)
    with pytest.raises(FamilyError, match="Suppression needs a UNet"):
        GUARD.plan(replace(task, family=families()["flux"]), on)
