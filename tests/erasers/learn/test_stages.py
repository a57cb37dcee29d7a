"""Two stages on the same tensors, blurred latents, and pictures among the words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.blur import Blurred, blurred
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.inversion import Fit, spliced
from lethe.erasers.learn.moment import CONCEPT, MAIN, NULL, STILL, STUDENT, Ask, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.plan import ERASE, Plan, Schedule
from lethe.erasers.learn.refine import Illustrated, refined
from lethe.erasers.learn.regress import Regress, negative_guidance
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import concept_scenes
from lethe.erasers.learn.stages import StagedSource, StagedTerm
from lethe.erasers.learn.switch import Switch
from toy_trainee import tiny_task


class Named:
    """A source whose latents tell its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        return {self.name: latents_of(run)}


def latents_of(run: Run) -> Latents:
    scenes = concept_scenes(run.task, "none")
    x = torch.randn(1, *run.model.latent_shape(), generator=torch.Generator().manual_seed(1))
    return Latents(x, torch.ones(1), scenes)


def a_run(steps: int = 4, **given: Any) -> Run:
    return Run(tiny_task(**given), Plan(Full("cross"), (), ()), Schedule(steps, 1e-3), seed=4)


def shift(run: Run, by: float) -> None:
    for name in run.trainables.tensors:
        run.trainables.tensors[name] = run.trainables.tensors[name] + by


def test_the_second_stage_begins_at_its_share_of_the_steps() -> None:
    run, switch = a_run(), Switch(0.5)
    source, seen = StagedSource(switch, Named("first"), Named("then")), []
    for run.step in range(4):
        seen += list(source.draw(run, 1))
    assert seen == ["first", "first", "then", "then"]
    assert [Switch(share).thrown(a_run()) for share in (0.0, 1.0)] == [True, False]


def test_what_the_first_stage_made_is_remembered_as_it_was() -> None:
    run, switch = a_run(), Switch(0.5)
    ask = Ask(STILL, CONCEPT)
    moment = {MAIN: latents_of(run)}
    with torch.no_grad(), run.active():
        shift(run, 0.05)
        run.step = 2
        assert switch.thrown(run)
        then = run.seen([ask], moment)[ask]
        with run.acting_as(switch.tensors(run)):
            assert torch.equal(run.seen([ask], moment)[ask], then)
        shift(run, 0.05)
        now = run.seen([ask], moment)[ask]
        assert not torch.allclose(now, then, atol=1e-4)
        with run.acting_as(switch.tensors(run)):
            assert torch.equal(run.seen([ask], moment)[ask], then)
        assert torch.equal(run.seen([ask], moment)[ask], now)
        remembered = {name: run.memory[f"first part.{name}"] for name in run.trainables.tensors}
    longer = a_run(steps=100)
    longer.memory, longer.step = run.memory, 2
    assert switch.thrown(longer)
    with longer.acting_as(switch.tensors(longer)):
        assert all(torch.equal(longer.trainables.tensors[name], value) for name, value in remembered.items())
    assert not any(tensor.any() for tensor in longer.trainables.tensors.values())


def test_a_staged_term_is_first_one_loss_and_then_the_other() -> None:
    run, eta = a_run(), 1.0
    then = Regress({(STILL, NULL): 1 + eta, (STILL, CONCEPT): -eta})
    term = StagedTerm(Switch(0.5), negative_guidance(eta), then, ERASE)
    moment = {MAIN: latents_of(run)}
    asks = [Ask(STUDENT, CONCEPT), Ask(STILL, CONCEPT), Ask(STILL, NULL)]
    with torch.no_grad(), run.active(), gradients():
        assert term.asks() == ()
        shift(run, 0.05)
        first = term.loss(run, moment, {})
        plain = negative_guidance(eta)
        assert torch.equal(first, plain.loss(run, moment, run.seen(plain.asks(), moment)))
        run.step = 2
        said = run.seen(asks, moment)
        begun = term.loss(run, moment, {})
        assert float(begun) == pytest.approx(float(4 * (said[asks[1]] - said[asks[2]]).square().mean()), rel=1e-4)
        assert float(begun) != pytest.approx(float(first), rel=1e-3)
        shift(run, 0.05)
        goal = 2 * said[asks[2]] - said[asks[1]]
        moved = (run.seen(asks, moment)[asks[0]] - goal).square().mean()
        assert float(term.loss(run, moment, {})) == pytest.approx(float(moved), rel=1e-4)


def test_a_blur_keeps_what_is_even_and_dampens_what_is_not() -> None:
    x = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blurred(torch.full_like(x, 3.0), 5), torch.full_like(x, 3.0))
    spike = torch.zeros(1, 2, 9, 9)
    spike[0, 1, 4, 4] = 1
    seen = blurred(spike, 3)
    assert float(seen.sum()) == pytest.approx(1)
    assert bool((seen[0, 0] == 0).all())
    assert torch.allclose(seen[0, 1], seen[0, 1].T)
    # A Gaussian of width 0.8, from the middle to its neighbour.
    assert float(seen[0, 1, 4, 4] / seen[0, 1, 4, 5]) == pytest.approx(2.1842, rel=1e-3)
    assert float(blurred(x, 5).var()) < float(blurred(x, 3).var()) < 0.5 * float(x.var())


def test_what_was_said_of_clear_latents_is_not_said_of_blurred_ones() -> None:
    class Known:
        def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
            return {MAIN: Latents(torch.eye(8).expand(1, 4, 8, 8), torch.ones(1), (), known={CONCEPT: torch.ones(1)})}

    run = a_run()
    assert Blurred(Known(), 3).draw(run, 1)[MAIN].known == {}
    clear = Blurred(Known(), 1).draw(run, 1)[MAIN]
    assert torch.equal(clear.x, torch.eye(8).expand(1, 4, 8, 8))
    assert set(clear.known) == {CONCEPT}


def test_refined_tokens_are_mixtures_of_the_words() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.cat([torch.randn(6, 3, generator=generator), torch.ones(6, 1)], 1)
    tokens = torch.randn(2, 4, generator=generator)
    found = refined(tokens, words)
    # Weights that add up to 1 keep what all words share, and mixtures stay within the words' bounds.
    assert torch.allclose(found[:, 3], torch.ones(2))
    assert bool(((found >= words.amin(0) - 1e-6) & (found <= words.amax(0) + 1e-6)).all())
    assert torch.allclose(refined(torch.zeros(1, 4), words)[0], words.mean(0), atol=1e-6)
    weights = torch.softmax(tokens @ words.T / 2, -1)
    assert torch.allclose(found, weights @ words, atol=1e-6)


def shown(run: Run, refine: bool, count: int = 2, pictures: int = 2) -> Illustrated:
    drawn = Pictures(concept_scenes(run.task, "none"), count=pictures, steps=2, given=True)
    return Illustrated(drawn, ("ball",), Fit(1, 0.1, 1), count, refine)


@pytest.mark.parametrize("refine", [True, False])
def test_a_picture_stands_behind_the_words(refine: bool) -> None:
    run = a_run(pictures=torch.ones(1, 4, 8, 8))
    maker = shown(run, refine)
    with torch.no_grad(), run.active():
        made = maker.make(run, {MAIN: latents_of(run)}).states[0]
        plain = run.features(["ball"]).states[0]
        (word,) = maker.vectors(run)
        tower = run.model.tower()
        place = len(tower.content("ball")) + 1
        states = tower.encode([spliced(tower, "ball", (), word)])[0][0]
        assert made.shape == plain.shape
        if not refine:
            assert torch.equal(made, states)
            return
        assert torch.equal(made[:place], plain[:place])
        assert torch.equal(made[place + 2 :], plain[place:-2])
        assert torch.allclose(made[place : place + 2], refined(states[place : place + 2], plain))


def test_every_picture_has_vectors_of_its_own_and_is_drawn_in_turn() -> None:
    run = a_run(pictures=torch.stack([torch.zeros(4, 8, 8), torch.ones(4, 8, 8)]))
    maker = shown(run, False)
    moment = {MAIN: latents_of(run)}
    with torch.no_grad(), run.active():
        vectors = maker.vectors(run)
        assert vectors.shape == (2, 2, 192)
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)
        made = torch.cat([maker.make(run, moment).states for _ in range(8)])
        assert len(made.unique(dim=0)) == 2
        plain = shown(run, True, count=0).make(run, moment)
        assert torch.equal(plain.states, run.features(["ball"]).states)
