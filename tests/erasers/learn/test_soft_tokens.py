"""Free vectors in the text encoder's input: where they stand, and that the search finds worse ones for the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.moment import CONCEPT, TEACHER, Ask, Latents
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.soft_tokens import BETWEEN, LATEST, PREFIX, RANDOM, SoftTokens
from lethe.erasers.model import is_vector
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


@dataclass(frozen=True)
class Fixed:
    """The same latents at every draw."""

    latents: Latents

    def draw(self, run: Run, rows: int) -> dict[str, Latents]:
        return {"x": self.latents}


def _run() -> Run:
    task = tiny_task()
    return run_of(job_of("adv_unlearn", task, {"sampling_steps": 4, "trajectories": 2}), task)


def _gap(run: Run, adversary: SoftTokens, latents: Latents, vectors: Tensor) -> float:
    plain = run.teacher(latents, run.of_role(Ask(TEACHER, CONCEPT), latents))
    return float((run.student(latents, adversary.read(run, latents, vectors)) - plain).square().mean())


@pytest.mark.parametrize(("place", "at"), [(PREFIX, 0), (BETWEEN, 2)])
def test_vectors_stand_among_tokens_not_words(place: str, at: int) -> None:
    run = _run()
    tower = run.model.tower()
    words = "a green ball"
    content, vectors = tower.content(words), torch.zeros(2, 4)
    assert len(content) == 3
    spelled = SoftTokens(Fixed(None), place=place).spelled(tower, words, vectors)  # type: ignore[arg-type]
    assert len(spelled) == len(tower.ids(words))
    assert [is_vector(token) for token in spelled[1:6]] == [i in (at, at + 1) for i in range(5)]
    assert [token for token in spelled[1:6] if not is_vector(token)] == content
    assert spelled[6] == tower.end


def test_a_prompt_without_vectors_is_the_prompt() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        adversary = SoftTokens(Fixed(latents))
        states = adversary.read(run, latents, adversary.found(run)).states
        assert torch.equal(states, run.of_role(Ask(TEACHER, CONCEPT), latents).states)


def test_the_search_comes_down_on_the_same_latents_and_the_model_stays() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents, gaps = moment["x"], []
        before = {name: tensor.clone() for name, tensor in run.trainables.tensors.items()}
        for steps in (0, 4, 8, 16):
            run.generator.manual_seed(0)
            adversary = SoftTokens(Fixed(latents), steps=steps, rate=3e-3)
            made = adversary.make(run, moment)
            assert not made.states.requires_grad
            gaps.append(_gap(run, adversary, latents, run.memory["soft tokens"]))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.95 * gaps[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in run.trainables.tensors.items())


def test_the_search_goes_on_from_the_last_or_begins_at_a_token() -> None:
    run = _run()
    table = run.model.tower().vocabulary()
    with torch.no_grad(), run.active():
        moment = run.draw()
        for start in (RANDOM, LATEST):
            SoftTokens(Fixed(moment["x"]), steps=1, rate=1e-2, start=start).make(run, moment)
            before = run.memory["soft tokens"]
            SoftTokens(Fixed(moment["x"]), steps=0, start=start).make(run, moment)
            after = run.memory["soft tokens"]
            assert torch.equal(before, after) == (start == LATEST)
            assert bool((table == after).all(1).any()) == (start == RANDOM)


def test_each_step_takes_its_own_gradient_and_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = _run(), []
    source = run.plan.sources[0]

    class Counted:
        def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
            asked.append(source.draw(run, rows)["x"])
            return {"x": asked[-1]}

    class Plain(torch.optim.SGD):
        def __init__(self, leaves: list[Tensor], lr: float) -> None:
            super().__init__(leaves, lr)

    monkeypatch.setattr(torch.optim, "Adam", Plain)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.memory["soft tokens"] = run.model.tower().vocabulary()[[3]]
        places = [run.memory["soft tokens"]]
        state = run.generator.get_state()
        for steps in (1, 2):
            run.generator.set_state(state)
            run.memory["soft tokens"] = places[0]
            SoftTokens(Counted(), steps=steps, rate=0.1, start=LATEST).make(run, moment)
            places.append(run.memory["soft tokens"])
        assert len(asked) == 3 and torch.equal(asked[0].x, asked[1].x) and not torch.equal(asked[1].x, asked[2].x)
        assert len(moment["x"].x) > 1 and all(len(latents.x) == 1 for latents in asked)
        for latents, before, after in zip(asked[1:], places, places[1:], strict=False):
            goal = run.teacher(latents, run.of_role(Ask(TEACHER, CONCEPT), latents))
            with gradients():
                leaf = before.clone().requires_grad_()
                said = run.student(latents, SoftTokens(Counted()).read(run, latents, leaf))
                (slope,) = torch.autograd.grad((said - goal).square().mean(), [leaf])
            torch.testing.assert_close(after, before - 0.1 * slope)


def test_too_many_vectors_are_refused() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        with pytest.raises(SettingError, match="tokens do not fit"):
            SoftTokens(Fixed(moment["x"]), count=200, steps=0).make(run, moment)
