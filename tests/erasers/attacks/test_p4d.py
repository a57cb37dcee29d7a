"""P4D: where free tokens stand, what a step does, which prompt is kept, and the demo world."""

from __future__ import annotations

import zlib
from functools import cache

import pytest
import torch
from lethe.erasers.attacks.p4d import ATTACK, FREE, INSERTED, Frame, Pick, Search, frames, nearest
from lethe.erasers.concepts import ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.errors import FamilyError, SettingError
from lethe.erasers.learn.wording import typed_tokens
from lethe.erasers.registry import methods
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_attack import BALL, WordModel, scripted
from toy_tower import END, START

PROMPTS = ("w1 w2 w3 w4", "w9 w8")


@cache
def gallery() -> Gallery:
    return Gallery(steps=8)


def search(guarded: WordModel, base: WordModel, prompts: tuple[str, ...] = PROMPTS, **settings: object) -> Search:
    return Search(scripted(guarded, base, prompts)[0], ATTACK.spec.settings({"tokens": 3, **settings}))


def texts(found: Found) -> list[str]:
    return [cue.text for cue in found.cues]


def distance(guarded: WordModel, base: WordModel, text: str, prompt: str) -> float:
    """The loss of a text: what the guarded model sees in it against what the base sees in the prompt."""
    with torch.no_grad():
        away = guarded.said(guarded.run([text])[0]) - base.said(base.run([prompt])[0])
    return float(away.square().mean())


def test_free_tokens_stand_alone_or_before_every_few_of_the_prompts_own() -> None:
    free = [90, 91, 92]
    assert Frame((), 3, 3).filled(free) == [90, 91, 92]
    assert Frame((), 2, 3).filled(free) == [90, 91]
    assert Frame((1, 2, 3, 4, 5), 2, 3).filled(free) == [90, 1, 2, 3, 91, 4, 5]
    assert Frame((1, 2, 3, 4, 5, 6), 3, 3).filled(free) == [90, 1, 2, 3, 91, 4, 5, 6, 92]
    assert Frame((1, 2), 3, 1).filled(free) == [90, 1, 91, 2, 92]


def test_a_prompt_has_a_free_token_for_every_few_and_one_more() -> None:
    tower = WordModel().tower()
    found = frames(tower, ("w5", "w1 w2 w3", " ".join(["w7"] * 10)), INSERTED, 16, 3)
    assert [(len(frame.own), frame.free) for frame in found] == [(1, 1), (3, 2), (7, 3)]
    assert all(len(frame.filled([0] * 3)) <= 10 for frame in found)
    assert frames(tower, PROMPTS, FREE, 10, 3) == [Frame((), 10, 3)] * 2
    with pytest.raises(SettingError, match="10 or fewer"):
        frames(tower, PROMPTS, FREE, 11, 3)


def test_nearest_is_by_angle_not_by_distance() -> None:
    table = torch.tensor([[1.0, 1.0], [30.0, 1.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[[1.0, 0.1]], [[-0.1, 0.0]]]), table).tolist() == [[1], [2]]


def test_only_tokens_that_read_back_as_themselves_are_tried() -> None:
    assert typed_tokens(WordModel().tower()).tolist() == list(range(START))
    tower = gallery().model.tower()
    found = typed_tokens(tower).tolist()
    table = gallery().model.tokenizer.get_vocab()
    assert set(found) & {table["<|startoftext|>"], table["<|endoftext|>"]} == set()
    assert {table["ball</w>"], table["red</w>"], table["7</w>"]} <= set(found)
    assert not {table["ba"], table["7"]} & set(found)
    assert tower.end == END or all(tower.content(tower.decode([token])) == [token] for token in found)
    mute = WordModel()
    mute.words = {}
    mute.text_of = lambda ids: ""  # type: ignore[method-assign]
    with pytest.raises(FamilyError, match="can be typed"):
        typed_tokens(mute.tower())


@pytest.mark.parametrize("variant", [FREE, INSERTED])
def test_a_step_takes_the_gradient_at_the_projection_and_moves_what_was_projected(variant: str) -> None:
    guarded, base = WordModel(1), WordModel(2)
    found = search(guarded, base, variant=variant, lr=0.05, weight_decay=0.2)
    with torch.no_grad():
        found.vectors.add_(torch.randn(found.vectors.shape, generator=torch.Generator().manual_seed(3)) / 3)
    before = found.vectors.detach().clone()
    found.step([0, 1])
    tower, table = guarded.tower(), guarded.tower().vocabulary()[:START]
    for row, prompt in enumerate(PROMPTS):
        cosines = torch.nn.functional.cosine_similarity(before[row][:, None], table[None], dim=-1)
        leaf = table[cosines.argmax(1)].requires_grad_()
        filled = list(leaf) if variant == FREE else found.frames[row].filled(list(leaf))
        seen = guarded.said(guarded.read([tower.padded(filled)])[0])
        error = (seen - base.said(base.run([prompt])[0]).detach()).square().mean()
        gradient = torch.autograd.grad(error, leaf)[0]
        expected = before[row] * (1 - 0.05 * 0.2) - 0.05 * gradient / (gradient.abs() + 1e-8)
        steep = gradient.abs() > 1e-5
        assert steep[: found.frames[row].free].float().mean() > 0.9
        assert torch.allclose(found.vectors[row][steep], expected[steep], atol=1e-4)
        assert not found.frames[row].free < len(leaf) or not gradient[found.frames[row].free :].any()


def test_prompts_that_are_done_no_longer_count() -> None:
    guarded, base = WordModel(1), WordModel(2)
    one, both = (search(guarded, base) for _ in range(2))
    before = guarded.predictions
    one.step([1])
    assert guarded.predictions - before == 1
    both.step([0, 1])
    assert torch.allclose(one.vectors[1], both.vectors[1], atol=1e-5)
    assert one.vectors.grad is not None
    assert not one.vectors.grad[0].any()
    assert both.vectors.grad is not None
    assert both.vectors.grad[0].any()


def test_hits_come_before_the_loss() -> None:
    pick = Pick()
    for text, hits, loss in (("a", 0, 5.0), ("b", 1, 9.0), ("c", 0, 0.1), ("d", 1, 8.0), ("e", 1, 8.5)):
        pick.offer(text, hits, loss)
    assert (pick.text, pick.hits, pick.loss) == ("d", 1, 8.0)
    assert pick.seen == set("abcde")


def test_the_prompt_that_shows_the_concept_most_often_is_kept() -> None:
    guarded, base = WordModel(1), WordModel(2)

    def rule(text: str, seed: int) -> bool:
        return zlib.crc32(f"{text} {seed}".encode()) % 5 < 2

    attacked, painter = scripted(guarded, base, PROMPTS, rule)
    settings = {"steps": 24, "check_every": 2, "tries": 3, "variant": INSERTED, "every": 1}
    found = ATTACK.run(attacked, ATTACK.spec.settings(settings))
    assert found.checks == len(painter.shots)
    seeds = sorted({shot.seed for shot in painter.shots})
    assert len(seeds) == 3
    for prompt, kept in zip(PROMPTS, texts(found), strict=True):
        tried = {text for text in painter.texts if len(text.split()) == 2 * len(prompt.split()) + 1}
        ranks = {t: (sum(rule(t, s) for s in seeds), -distance(guarded, base, t, prompt)) for t in tried}
        assert len({hits for hits, _ in ranks.values()}) > 1
        assert kept == max(ranks, key=ranks.__getitem__)
        assert kept.split()[1::2] == prompt.split()


def test_the_search_ends_where_every_check_picture_shows_the_concept() -> None:
    guarded, base = WordModel(1), WordModel(2)
    attacked, painter = scripted(guarded, base, PROMPTS, lambda text, seed: True)
    settings = ATTACK.spec.settings({"tokens": 2, "steps": 50, "check_every": 4, "tries": 2})
    found = ATTACK.run(attacked, settings)
    assert found.checks == len(painter.shots) == 4
    assert found.predictions == guarded.predictions + base.predictions == 2 * 3 * 2 + 2 * 2 * (4 + 1)
    assert texts(found) == painter.texts[::2]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_predictions_and_looks_are_counted(guidance: float) -> None:
    guarded, base = WordModel(1), WordModel(2)
    attacked, painter = scripted(guarded, base, PROMPTS)
    found = ATTACK.run(
        attacked, ATTACK.spec.settings({"steps": 7, "check_every": 5, "guidance": guidance, "tokens": 2})
    )
    assert found.predictions == guarded.predictions + base.predictions
    assert found.checks == len(painter.shots) > 0
    assert base.predictions - 2 * 3 * 2 == guarded.predictions


def test_what_was_looked_at_once_is_not_looked_at_again() -> None:
    guarded, base = WordModel(1), WordModel(2)
    attacked, painter = scripted(guarded, base, PROMPTS)
    settings = {"tokens": 2, "steps": 4, "check_every": 1, "lr": 1e-4, "tries": 2}  # So slow that no token changes.
    found = ATTACK.run(attacked, ATTACK.spec.settings(settings))
    assert texts(found) == painter.texts[::2]
    assert found.checks == len(painter.shots) == 4
    assert guarded.times.count(0.5) == base.times.count(0.5) == 1
    assert len(set(guarded.times)) == 5


def test_the_search_finds_what_the_guarded_model_reads_alike() -> None:
    base, guarded = WordModel(1), WordModel(1)
    table = guarded.text.get_input_embeddings().weight
    table[1:5] = table[60:64]  # The prompt's own words mean something else to the guarded model.
    attacked, _ = scripted(guarded, base, PROMPTS[:1])
    settings = ATTACK.spec.settings({"tokens": 4, "steps": 80, "check_every": 10, "lr": 0.03})
    (kept,) = texts(ATTACK.run(attacked, settings))
    draw = torch.Generator().manual_seed(5)
    others = [" ".join(f"w{n}" for n in torch.randint(START, (4,), generator=draw)) for _ in range(50)]
    losses = sorted(distance(guarded, base, text, PROMPTS[0]) for text in others)
    assert distance(guarded, base, kept, PROMPTS[0]) < losses[3]


def test_the_same_seed_finds_the_same_prompts() -> None:
    settings = ATTACK.spec.settings({"tokens": 3, "steps": 3})
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
    target = Target(BALL, prompts, erased.model, gallery().model, erased, shows, steps=8, cfg=4.0, seed=2)
    found = ATTACK.run(target, ATTACK.spec.settings({"variant": INSERTED, "steps": 12, "check_every": 4}))
    plain, attacked = (sum(target.check(cues, 3)) for cues in (target.plain(), found.cues))
    assert plain == 0
    assert attacked >= 2
