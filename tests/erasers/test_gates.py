"""What opens gates: each kind against its equations written out, and what a file may not hold."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.context import TEMPLATES
from lethe.erasers.concepts import ConceptList
from lethe.erasers.errors import ConceptError, NumericsError
from lethe.erasers.gates import ramp
from lethe.erasers.registry import families, gates
from lethe.erasers.task import EncodedPrompt, Task
from torch.nn import functional
from word_tower import END, WordTower

KEPT = ("tree lamp", "red lamp", "old house", "blue cat", "cat tree", "red house")


@pytest.fixture(scope="module")
def task() -> Task:
    """A task whose features are its words, with what each says of the word before it mixed in."""
    tower = WordTower()

    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        ids = [tower.ids(prompt) for prompt in prompts]
        states = tower.encode(ids)[0]
        states = states + 0.3 * states.roll(1, 1)
        return [
            EncodedPrompt(text, own, row.index(END) - 1, tuple(row))
            for text, own, row in zip(prompts, states, ids, strict=True)
        ]

    return Task(ConceptList().with_preserved(KEPT), families()["demo"], "toy", encode)


def encoded(task: Task, prompt: str) -> EncodedPrompt:
    return task.encode([prompt])[0]


@pytest.mark.parametrize("name", sorted(gates()))
def test_every_gate_opens_for_its_name_and_stays_as_it_was_in_a_file(task: Task, name: str) -> None:
    kind = gates()[name]
    first, second = kind.fit([("ball",), ("red fish", "trout")], task, 0.3)
    ball, fish = encoded(task, "ball"), encoded(task, "red fish")
    assert first.kind == name
    assert first.openness(ball.states, ball.ids) > 0.5
    assert second.openness(fish.states, fish.ids) > 0.5
    assert first.openness(ball.states, ball.ids) > second.openness(ball.states, ball.ids)
    again = kind.load({n: t if t.dtype == torch.int64 else t.float() for n, t in first.tensors().items()}, 0.3)
    assert again.openness(ball.states, ball.ids) == pytest.approx(first.openness(ball.states, ball.ids), abs=1e-4)


@pytest.mark.parametrize("name", sorted(gates()))
def test_a_gate_without_a_name_or_with_tensors_that_do_not_fit_is_refused(task: Task, name: str) -> None:
    kind = gates()[name]
    with pytest.raises(ConceptError):
        kind.fit([("ball",), ()], task, 0.5)
    (gate,) = kind.fit([("ball",)], task, 0.5)
    for missing in gate.tensors():
        with pytest.raises(NumericsError):
            kind.load({n: t for n, t in gate.tensors().items() if n != missing}, 0.5)
        if name != "contribution" or missing != "keys":
            with pytest.raises(NumericsError):
                kind.load({n: t[..., :0] if n == missing else t for n, t in gate.tensors().items()}, 0.5)


def test_transport_is_the_share_of_tokens_or_the_calibrated_cosine(task: Task) -> None:
    (gate,) = gates()["transport"].fit([("red fish", "trout")], task, 0.0)
    empty = encoded(task, "").states.flatten()
    for prompt, share in (("old red cat", 0.5), ("blue tree", 0.0), ("a trout", 1.0), ("red fish", 1.0)):
        own = encoded(task, prompt)
        cosines = []
        for phrase in ("red fish", "trout"):
            key = encoded(task, phrase).states.flatten()
            base = functional.cosine_similarity(empty, key, dim=0)
            cosines.append(float((functional.cosine_similarity(own.states.flatten(), key, dim=0) - base) / (1 - base)))
        assert gate.openness(own.states, own.ids) == pytest.approx(max(0.0, share, *cosines), abs=1e-5)
        assert gate.openness(own.states) == pytest.approx(max(0.0, *cosines), abs=1e-5)
    twice = torch.cat([encoded(task, "blue tree").states, encoded(task, "trout").states])
    assert gate.openness(twice) == pytest.approx(1.0, abs=1e-5)
    assert gate.openness(encoded(task, "").states) == 0


def test_contribution_is_the_mean_of_the_nearest_tokens_to_the_fourth_power(task: Task) -> None:
    (gate,) = gates()["contribution"].fit([("red fish",)], task, 0.2)
    frames = TEMPLATES["object"]
    prompts = [encoded(task, frame.format("red fish")) for frame in frames]
    keys = torch.stack([p.states[p.last - 1 : p.last + 1] for p in prompts]).mean(0)
    said = encoded(task, "old red cat").states[1:]
    nearest = (functional.normalize(said, dim=1) @ functional.normalize(keys, dim=1).T).max(0).values
    expected = max(0.0, (float(nearest.mean()) - 0.2) / 0.8) ** 4
    assert gate.openness(encoded(task, "old red cat").states) == pytest.approx(expected, abs=1e-4)


def test_a_discriminant_reads_names_of_several_tokens_by_what_sets_them_apart(task: Task) -> None:
    (gate,) = gates()["discriminant"].fit([("red fish", "trout")], task, 0.5)
    assert gate.openness(encoded(task, "red house").states) == 0
    assert gate.openness(encoded(task, "red fish").states) == 1
    assert gate.openness(encoded(task, "trout").states) == 1


def test_a_ramp_is_shut_up_to_its_threshold() -> None:
    assert [ramp(v, 0.5) for v in (0.0, 0.5, 0.75, 1.0, 1.5)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert [ramp(v, 1.0) for v in (0.9, 1.0)] == [0.0, 1.0]
    assert ramp(-0.2, 0.0) == 0.0
