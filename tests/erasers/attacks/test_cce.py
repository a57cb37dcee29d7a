"""Concept inversion: where the word stands, what it is fitted to, and the demo world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.attacks.cce import ATTACK, CONCEPT, MEAN, REPLACEMENT, WORD, first_vectors, spelled
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.model import Token
from lethe.erasers.painter import Spelling
from lethe.erasers.registry import methods
from lethe.erasers.result import ContextOperator
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_tower import END, START, TOKENS, ToyModel

BALL = Concept("ball", "red box", ("big-orb", "ball-orb"))


class Counted(ToyModel):
    """A toy model that counts its noise predictions and draws pictures that differ from prompt to prompt."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.predictions = 0

    def sample(
        self, prompts: list[str], steps: int, cfg: float, seed: int,
        on_step: Callable[[int], None] | None = None, operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:  # fmt: skip
        self.predictions += 2 * steps * len(prompts)
        self.sampled.append(prompts)
        with torch.no_grad():
            return self.said(self.run(prompts)[0])

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        """The noise, were the latents what the context says; guidance exaggerates the difference."""
        self.predictions += len(latents) * (1 if cfg == 1 else 2)
        return noise + cfg * (self.said(context) - latents)

    def said(self, context: Tensor) -> Tensor:
        """What features `[n, tokens, 16]` say, `[n, 2, 2, 2]`."""
        said = sum(block["attn2"](context) for block in self.unet.values())  # type: ignore[index]
        assert isinstance(said, Tensor)
        return said.mean(1).reshape(-1, 2, 2, 2)


def target(guarded: Any, base: Any, prompts: tuple[str, ...] = ("a ball", "the ball here"), **given: Any) -> Target:
    return Target(BALL, prompts, guarded, base, None, lambda seen: seen, steps=3, **given)  # type: ignore[arg-type]


def run(attacked: Target, **settings: object) -> Found:
    return ATTACK.run(attacked, ATTACK.spec.settings({"pictures": 5, "steps": 2, **settings}))


def moved(model: ToyModel, lr: float = 0.01, start: str = CONCEPT) -> Tensor:
    """Where the vector is after one step in which its loss does not depend on it: only the decay acts."""
    return first_vectors(model.tower(), BALL, start, 1) * (1 - lr * 0.01)


def test_the_word_stands_where_the_name_stood() -> None:
    model = ToyModel()
    tower, word = model.tower(), torch.arange(32.0).reshape(2, 16)

    def read(prompt: str) -> list[int | str]:
        row = spelled(tower, prompt, BALL, word)
        assert len(row) == TOKENS
        return [f"v{int(token[0]) // 16}" if isinstance(token, Tensor) else token for token in row]

    a, big, on, blue = (model.ids(text)[1] for text in ("a", "big", "on", "blue"))
    end = [END] * TOKENS
    assert read("a ball on") == [START, a, "v0", "v1", on, *end[5:]]
    assert read("big big-orb ball") == [START, big, "v0", "v1", "v0", "v1", *end[6:]]
    assert read("a ball-orb") == [START, a, "v0", "v1", *end[4:]]
    assert read("a blue") == [START, a, blue, "v0", "v1", *end[5:]]
    assert read("on " * 10) == [START, *[on] * 8, "v0", "v1", END]
    assert read("on " * 9 + "ball") == [START, *[on] * 8, "v0", "v1", END]


def test_the_search_begins_where_it_is_told() -> None:
    model = ToyModel()
    tower = model.tower()
    table = tower.vocabulary()
    red, box, ball = (table[model.ids(text)[1]] for text in ("red", "box", "ball"))
    assert torch.equal(first_vectors(tower, BALL, REPLACEMENT, 1), red[None])
    assert torch.equal(first_vectors(tower, BALL, REPLACEMENT, 3), torch.stack([red, box, red]))
    assert torch.equal(first_vectors(tower, BALL, CONCEPT, 2), torch.stack([ball, ball]))
    assert torch.allclose(first_vectors(tower, BALL, MEAN, 2), table.mean(0).expand(2, -1))
    assert torch.allclose(first_vectors(tower, Concept("ball"), REPLACEMENT, 1), table.mean(0)[None])


def test_the_word_learns_to_draw_what_the_untouched_model_drew() -> None:
    """The guarded text encoder reads "ball" as "red"; the ball's own vector would undo that."""
    base, guarded = Counted(), Counted()
    guarded.words = base.words
    prompts = ("a ball", "the ball here")
    ball, red = (base.ids(text)[1] for text in ("ball", "red"))
    base.run(list(prompts))
    table = guarded.text.get_input_embeddings().weight
    table[ball] = table[red]
    before = {key: value.clone() for key, value in guarded.text.state_dict().items()}
    found = run(target(guarded, base, prompts), steps=150, lr=0.03)

    def distance(rows: list[list[Token]]) -> float:
        with torch.no_grad():
            return float((guarded.said(guarded.read(rows)[0]) - base.said(base.run(list(prompts))[0])).norm())

    learned = [list(source.tokens) for cue in found.cues for _, source in cue.parts if isinstance(source, Spelling)]
    assert distance(learned) < 0.25 * distance([list(guarded.ids(prompt)) for prompt in prompts])
    assert all(torch.equal(value, before[key]) for key, value in guarded.text.state_dict().items())


def test_what_is_found_can_be_saved_and_drawn_from() -> None:
    found = run(target(Counted(), Counted()), vectors=2)
    learned = found.embeddings[WORD]
    assert learned.shape == (2, 16)
    assert learned.dtype == torch.float32
    assert not learned.requires_grad
    for cue in found.cues:
        ((weight, source),) = cue.parts
        assert weight == 1
        assert isinstance(source, Spelling)
        spliced = [token for token in source.tokens if isinstance(token, Tensor)]
        assert torch.equal(torch.stack(spliced), learned)


def test_the_same_seed_finds_the_same_word() -> None:
    one, again, other = (run(target(Counted(), Counted(), seed=seed)).embeddings[WORD] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_word_is_read_by_the_guarded_models_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    base, guarded = Counted(), Counted()
    monkeypatch.setattr(base, "tower", lambda: pytest.fail("The untouched text encoder was asked."))
    run(target(guarded, base))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_predictions_are_counted(guidance: float) -> None:
    base, guarded = Counted(), Counted()
    found = run(target(guarded, base), guidance=guidance, batch=3)
    assert found.predictions == base.predictions + guarded.predictions
    assert base.sampled == [["a ball", "the ball here", "a ball", "the ball here", "a ball"]]
    assert found.checks == 0


def test_guided_predictions_are_matched_to_the_untouched_models() -> None:
    """Where both models are the same and the word is the name, there is nothing to learn; else there is."""
    model = Counted()
    same = run(target(model, model), guidance=3.0, steps=1, start=CONCEPT, lr=0.01).embeddings[WORD]
    assert torch.allclose(same, moved(model), atol=1e-7)
    edited = Counted(1)
    edited.text, edited.words = model.text, model.words
    other = run(target(edited, model), guidance=3.0, steps=1, start=CONCEPT, lr=0.01).embeddings[WORD]
    assert not torch.allclose(other, moved(model), atol=1e-3)


def test_it_brings_the_concept_back_in_the_demo_world() -> None:
    gallery, ball = Gallery(steps=8), Concept("ball", "box")
    uce = methods()["uce"]
    eraser = uce.fit(gallery.task(ConceptList((ball,), lists=("demo-world",))), uce.spec.settings({}))
    erased = gallery.erased(eraser)

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["ball" in seen for seen in judge().seen(pictures)])

    attacked = Target(ball, ("a red ball", "a blue ball"), erased.model, gallery.model, erased, shows, 8, 4.0)
    found = run(attacked, steps=35, batch=4, pictures=4)
    fresh = replace(attacked, seed=100)
    assert sum(fresh.check(attacked.plain(), 4)) <= 2
    assert sum(fresh.check(found.cues, 4)) >= 5
