"""The gate: 1 for the concept, 0 for what is kept, against the discriminant written out."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.gates.discriminant import fit_gate, likenesses
from lethe.erasers.task import Task
from toy_tower import ToyModel

KEPT = ("tree lamp", "red lamp", "old house", "blue cat", "cat tree", "red house")


def task_of(*concepts: Concept) -> Task:
    found = ConceptList().with_preserved(KEPT)
    for concept in concepts:
        found = found.with_concept(concept)
    return ToyModel().task(found)


def test_likeness_is_fishers_discriminant() -> None:
    task = task_of(Concept("ball", "box"))
    gate = fit_gate(task, 0.5)
    others = torch.cat([p.states[1 : p.last + 2] for p in task.encode(["", *KEPT])]).double()
    spread = torch.cov(others.T, correction=0)
    spread += 0.01 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
    frames = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")
    own = [p.states[p.last] for p in task.encode([frame.format("ball") for frame in frames])]
    apart = torch.stack(own).double().mean(0) - others.mean(0)
    reader = torch.linalg.inv(spread) @ apart
    (prompt,) = task.encode(["red ball"])
    rows = (prompt.states[1:].double() - others.mean(0)) @ reader / (apart @ reader)
    assert gate.likeness(prompt.states) == pytest.approx(float(rows.max()))
    scores = ((others - gate.centre) @ gate.readers.T).squeeze()
    assert float(scores.mean()) == pytest.approx(0, abs=1e-9)


def test_it_opens_at_its_threshold_and_shows_where_that_may_lie() -> None:
    task = task_of(Concept("ball", "box", ("orb",)))
    (prompt,) = task.encode(["red ball"])
    likeness = fit_gate(task, 0.5).likeness(prompt.states)
    assert fit_gate(task, likeness).opens(prompt.states)
    assert not fit_gate(task, likeness + 1e-6).opens(prompt.states)
    page = likenesses(fit_gate(task, 0.5), task).splitlines()
    assert [line.split("  ")[1] for line in page[1:3]] == ["ball", "orb"]
    assert {line.split("  ")[1] for line in page[4:]} == {"(empty prompt)", *KEPT}


def test_without_a_concept_there_is_no_gate() -> None:
    with pytest.raises(ConceptError, match="guard against"):
        fit_gate(task_of(), 0.5)
