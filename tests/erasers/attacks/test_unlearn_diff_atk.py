"""UnlearnDiffAtk: the simplex, the straight-through gradient, the order of the search, and the demo world."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lethe.erasers.algebra.simplex import project_simplex
from lethe.erasers.attacks.unlearn_diff_atk import ATTACK, Search
from lethe.erasers.concepts import ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.errors import SettingError
from lethe.erasers.model import is_vector
from lethe.erasers.registry import methods
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_attack import BALL, WordModel, scripted
from toy_tower import START, TOKENS

PROMPTS = ("w1 w2 w3 w4", "w9 w8")


@cache
def gallery() -> Gallery:
    return Gallery(steps=8)


def search(guarded: WordModel, base: WordModel, **settings: object) -> Search:
    return Search(scripted(guarded, base, PROMPTS)[0], ATTACK.spec.settings({"tokens": 2, **settings}))


def texts(found: Found) -> list[str]:
    return [cue.text for cue in found.cues]


def certain(found: Search, tokens: list[list[int]]) -> None:
    """Put all of each row's weight on one token."""
    with torch.no_grad():
        found.shares.zero_()
        found.shares.scatter_(2, torch.tensor(tokens)[..., None], 1.0)


@pytest.mark.parametrize("width", [1, 2, 7, 77, 231])
@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_a_projected_row_is_the_nearest_point_of_the_simplex(width: int, spread: float) -> None:
    rows = spread * torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    found = project_simplex(rows)
    assert found.min() >= 0
    assert torch.allclose(found.sum(-1), torch.ones(5, 3, dtype=torch.float64), atol=1e-12)
    # Optimality: rows - found is the same number wherever found is positive, and no higher where it is zero.
    slack = rows - found
    tau = torch.where(found > 0, slack, slack.new_tensor(torch.inf)).amin(-1, keepdim=True)
    assert torch.allclose(torch.where(found > 0, slack, tau), tau.expand_as(slack), atol=1e-10 * (1 + spread))
    assert (slack <= tau + 1e-10).all()


def test_projections_that_can_be_seen() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.5], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0], [0.0, 0.6, 0.8], [-1.0, -1.0, -9.0]])
    expected = [[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.0, 0.4, 0.6], [0.5, 0.5, 0.0]]
    found = project_simplex(rows)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_a_whole_vocabulary_adds_up_in_single_precision() -> None:
    rows = 1 / 49408 + 0.01 * torch.randn(2, 49408, generator=torch.Generator().manual_seed(1)).sign()
    found = project_simplex(rows)
    assert torch.allclose(found.double().sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-4)
    assert found.min() >= 0


def test_the_search_begins_with_no_preference() -> None:
    found = search(WordModel(1), WordModel(2))
    assert found.shares.shape == (2, 2, START)
    assert torch.allclose(found.shares, torch.full_like(found.shares, 1 / START))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_gradient_is_that_of_the_drawn_rows(guidance: float) -> None:
    guarded, base = WordModel(1), WordModel(2)
    found = search(guarded, base, guidance=guidance)
    certain(found, [[5, 60], [7, 8]])
    given = found.gradient([0, 1], 0.5)
    tower, table = guarded.tower(), guarded.tower().vocabulary()[:START]
    goal = base.said(base.run(list(PROMPTS))[0])
    for row, own in enumerate(([1, 2, 3, 4], [9, 8])):
        hot = found.shares[row].detach().clone().requires_grad_()
        states = guarded.read([tower.padded([*(hot @ table), *own])])[0]
        error = (guidance * (guarded.said(states) - goal[row].detach())).square().mean()
        assert torch.allclose(given[row], torch.autograd.grad(error, hot)[0], atol=1e-6)
    assert given.abs().max() > 1e-3
    assert torch.allclose(found.gradient([1], 0.5), given[1:], atol=1e-6)


def test_the_gradient_is_clipped_and_a_step_ends_on_the_simplex() -> None:
    guarded, base = WordModel(1, gain=30.0), WordModel(2, gain=30.0)
    found = search(guarded, base, lr=0.05, weight_decay=0.0)
    certain(found, [[5, 60], [7, 8]])
    before, gradient = found.shares.detach().clone(), found.gradient([0], 0.5)
    assert gradient.abs().max() > 2
    found.step([0], 0.5)
    assert found.shares.grad is not None
    assert torch.allclose(found.shares.grad[0], gradient[0].clamp(-1, 1), atol=1e-4)
    assert not found.shares.grad[1].any()
    moved = before[0] - 0.05 * gradient[0].sign()  # Adam's first step
    assert torch.allclose(found.shares[0], project_simplex(moved), atol=1e-4)
    for _ in range(5):
        found.step([0, 1], 0.5)
    assert torch.allclose(found.shares.sum(-1), torch.ones(2, 2), atol=1e-5)
    assert found.shares.min() >= 0


def test_weight_decay_pulls_on_the_shares() -> None:
    """Where the model says nothing, decay alone moves the shares, and towards each other."""
    found = search(WordModel(1, gain=0.0), WordModel(2, gain=0.0), weight_decay=0.5)
    certain(found, [[5, 60], [7, 8]])
    found.step([0, 1], 0.5)
    assert found.shares.max() < 0.995
    still = search(WordModel(1, gain=0.0), WordModel(2, gain=0.0), weight_decay=0.0)
    certain(still, [[5, 60], [7, 8]])
    still.step([0, 1], 0.5)
    assert still.shares.max() == 1


def test_tokens_are_drawn_by_their_shares() -> None:
    guarded = WordModel(1)
    found = search(guarded, WordModel(2), tokens=6)
    with torch.no_grad():
        found.shares.zero_()
        found.shares[..., 5], found.shares[..., 60] = 0.25, 0.75
    table, read, drawn = guarded.tower().vocabulary(), guarded.read, list[bool]()

    def watch(rows: object) -> tuple[Tensor, Tensor]:
        drawn.extend(torch.equal(token, table[60]) for row in rows for token in row if is_vector(token))  # type: ignore[attr-defined]
        return read(rows)  # type: ignore[arg-type]

    guarded.read = watch  # type: ignore[method-assign,assignment]
    found.tower = guarded.tower()
    for _ in range(30):
        found.gradient([0, 1], 0.5)
    assert len(drawn) == 360
    assert 0.68 < sum(drawn) / len(drawn) < 0.82


def test_times_go_from_little_noise_to_much() -> None:
    guarded, base = WordModel(1), WordModel(2)
    attacked, painter = scripted(guarded, base, PROMPTS)
    found = ATTACK.run(attacked, ATTACK.spec.settings({"tokens": 2, "iterations": 3, "timesteps": 4}))
    assert guarded.times == pytest.approx([0.875] * 3 + [0.625] * 3 + [0.375] * 3 + [0.125] * 3)
    assert found.checks == len(painter.shots) == 2 + 4 * 2
    assert found.predictions == guarded.predictions + base.predictions == 2 * 3 * 2 + 2 * 12
    assert [text.split()[2:] for text in texts(found)] == [prompt.split() for prompt in PROMPTS]
    assert texts(found) == painter.texts[-2:]


def test_prompts_that_show_the_concept_as_they_are_stay() -> None:
    guarded, base = WordModel(1), WordModel(2)
    attacked, painter = scripted(guarded, base, PROMPTS, lambda text, seed: text == PROMPTS[1] and seed % 2 == 1)
    settings = ATTACK.spec.settings({"tokens": 2, "iterations": 2, "timesteps": 3, "tries": 2, "guidance": 2.0})
    found = ATTACK.run(attacked, settings)
    assert texts(found)[1] == PROMPTS[1]
    assert texts(found)[0] != PROMPTS[0]
    assert guarded.predictions == 2 * 2 * 3
    assert found.predictions == guarded.predictions + base.predictions
    assert found.checks == len(painter.shots) == 2 * 2 + 2 * 3
    attacked, painter = scripted(guarded, base, PROMPTS, lambda text, seed: True)
    found = ATTACK.run(attacked, settings)
    assert (texts(found), found.predictions, found.checks) == (list(PROMPTS), 0, 4)


def test_a_prompt_stops_at_its_first_success() -> None:
    guarded, base = WordModel(1), WordModel(2)
    seen: dict[str, int] = {}

    def rule(text: str, _seed: int) -> bool:
        """Prompt 1 breaks at the first attacked look, prompt 0 at the second."""
        own = "w9 w8" if text.endswith("w9 w8") else "w1"
        seen[own] = seen.get(own, 0) + 1
        return seen[own] == (2 if own == "w9 w8" else 3)

    attacked, painter = scripted(guarded, base, PROMPTS, rule)
    found = ATTACK.run(attacked, ATTACK.spec.settings({"tokens": 2, "iterations": 2, "timesteps": 9}))
    assert painter.texts[:2] == list(PROMPTS)
    assert texts(found) == [painter.texts[4], painter.texts[3]]
    assert found.checks == len(painter.shots) == 5
    assert guarded.predictions == 2 * 2 + 2


def test_what_does_not_fit_is_cut_off_or_refused() -> None:
    guarded, base = WordModel(1), WordModel(2)
    long = (" ".join(f"w{number}" for number in range(10)),)
    found = ATTACK.run(
        scripted(guarded, base, long)[0], ATTACK.spec.settings({"tokens": 9, "iterations": 1, "timesteps": 1})
    )
    (ids,) = (guarded.ids(text) for text in texts(found))
    assert len(ids) == TOKENS
    assert ids[10] == 0
    with pytest.raises(SettingError, match="9 or fewer"):
        ATTACK.run(scripted(guarded, base, long)[0], ATTACK.spec.settings({"tokens": 10}))


def test_the_search_lowers_the_loss() -> None:
    base, guarded = WordModel(1), WordModel(1)
    table = guarded.text.get_input_embeddings().weight
    table[1:5] = table[60:64]  # The prompt's own words mean something else to the guarded model.
    found = search(guarded, base, tokens=4)
    for _ in range(60):
        found.step([0, 1], 0.5)

    def losses(many: list[str]) -> Tensor:
        with torch.no_grad():
            goal = base.said(base.run([PROMPTS[0]])[0])
            return (guarded.said(guarded.run(many)[0]) - goal).square().flatten(1).mean(1)

    draw = torch.Generator().manual_seed(5)
    words = ([f"w{number}" for number in torch.randint(START, (4,), generator=draw)] for _ in range(50))
    others = losses([" ".join([*chosen, PROMPTS[0]]) for chosen in words])
    assert losses(found.texts([0])) < others.sort().values[3]


def test_the_same_seed_finds_the_same_prompts() -> None:
    settings = ATTACK.spec.settings({"tokens": 3, "iterations": 2, "timesteps": 2})
    one, again, other = (
        texts(ATTACK.run(scripted(WordModel(1), WordModel(2), PROMPTS, seed=seed)[0], settings)) for seed in (4, 4, 5)
    )
    assert one == again
    assert one != other


def test_it_brings_the_concept_back_in_the_demo_world() -> None:
    uce = methods()["uce"]
    eraser = uce.fit(gallery().task(ConceptList((BALL,), lists=("demo-world",))), uce.spec.settings({}))
    erased = gallery().erased(eraser)

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["ball" in seen for seen in judge().seen(pictures)])

    prompts = ("a red ball", "a blue ball in the desert")
    target = Target(BALL, prompts, erased.model, gallery().model, erased, shows, steps=8, cfg=4.0)
    found = ATTACK.run(target, ATTACK.spec.settings({"iterations": 4, "timesteps": 4}))
    plain, attacked = (sum(target.check(cues, 3)) for cues in (target.plain(), found.cues))
    assert plain == 0
    assert attacked >= 2
