"""EMCID against its published equation with explicit inverses, and on a tiny text encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.closed_form import Kept
from lethe.erasers.algebra.hooks import hooked, shifting
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, FamilyError, NumericsError, SettingError
from lethe.erasers.methods.emcid import METHOD, edit_layer
from lethe.erasers.result import Eraser, WeightEdit
from torch import Tensor, nn
from toy_tower import ToyModel

SIZES = [(1, 7, 5), (3, 16, 8), (7, 5, 1), (20, 33, 16), (33, 33, 4), (77, 40, 9), (231, 24, 6)]
CONCEPTS = ConceptList(preserve=("box", "green tree", "a red fish", "moon")).with_concept(
    Concept("ball", "cone", ("big-orb",), 2.0)
)
STRAIGHT = {"templates": "none", "lam_c": 1e-3, "shrink": 1e-6}
"""Settings that meet the value: one sentence, and next to no weight on what is held."""


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(width: int, count: int = 300) -> Tensor:
    held = rows(count, width, 9)
    return held.T @ held / count


def settings(**given: object) -> Mapping[str, Any]:
    return METHOD.spec.settings(given)


def textbook(k: Tensor, r: Tensor, cov: Tensor, lam: float, share: float, weights: Tensor, shrink: float) -> Tensor:
    """Equation 6.1, sums of outer products and an inverse."""
    ridged = cov + shrink * torch.trace(cov) / len(cov) * torch.eye(len(cov), dtype=cov.dtype)
    left = torch.zeros(r.shape[1], k.shape[1], dtype=k.dtype)
    right = lam * (1 - share) / 0.5 * ridged
    for key, residual, weight in zip(k, r, weights, strict=True):
        left = left + weight * share / 0.5 * torch.outer(residual, key)
        right = right + weight * share / 0.5 * torch.outer(key, key)
    return left @ torch.linalg.inv(right)


def written(model: ToyModel, eraser: Eraser) -> nn.Module:
    """A copy of the text encoder with the edits in its weights."""
    edited = copy.deepcopy(model.text)
    for name, edit in eraser.text_encoder.items():
        weight = edited.get_parameter(name.removeprefix("clip_l."))
        weight.data += edit.delta(tuple(weight.shape)).to(weight)
    return edited


def hidden(model: ToyModel, text: nn.Module, prompt: str, phrase: str, layer: int) -> Tensor:
    """Output of an encoder layer at a phrase's last token; of the end token for the empty prompt."""
    at = model.position(prompt, phrase) if prompt else 1
    return text(torch.tensor([model.ids(prompt)]), output_hidden_states=True).hidden_states[layer + 1][0, at]


@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize(("n", "k", "o"), SIZES)
def test_a_layers_edit_is_the_published_one(n: int, k: int, o: int, share: float) -> None:
    keys, residual, cov = rows(n, k, 1), rows(n, o, 2), covariance(k)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    given = settings(lam_c=3.0, edit_weight=share, shrink=0.05)
    expected = textbook(keys, residual, cov, 3.0, share, weights, 0.05)
    edit = edit_layer(keys, residual, Kept(cov), given, weights)
    assert (edit.down is not None) == (n < k)
    found = edit.delta((o, k))
    assert found.dtype == torch.float64
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    rounded = edit_layer(keys.float(), residual.float(), Kept(cov), given, weights).delta((o, k))
    assert rounded.dtype == torch.float32
    assert float((rounded - expected).norm() / expected.norm()) < 1e-5


def test_weights_of_one_are_the_default_and_half_is_neutral() -> None:
    keys, residual, cov = rows(3, 9, 1), rows(3, 4, 2), covariance(9)
    edit = edit_layer(keys, residual, Kept(cov), settings(lam_c=2.0, shrink=0.0)).delta((4, 9))
    expected = residual.T @ keys @ torch.linalg.inv(2 * cov + keys.T @ keys)
    assert torch.allclose(edit, expected, rtol=0, atol=1e-12)


def test_a_small_lam_meets_the_residual_and_a_large_one_changes_nothing() -> None:
    keys, residual, moment = rows(4, 12, 1), rows(4, 5, 2), Kept(covariance(12))
    tight = edit_layer(keys, residual, moment, settings(lam_c=1e-3, shrink=1e-9)).delta((5, 12))
    loose = edit_layer(keys, residual, moment, settings(lam_c=1e6)).delta((5, 12))
    assert torch.allclose(keys @ tight.T, residual, atol=1e-2)
    assert float(loose.norm()) < 1e-3 * float(tight.norm())


def test_directions_that_are_held_often_move_least() -> None:
    often, seldom = torch.eye(8, dtype=torch.float64)[:2]
    cov = torch.diag(torch.tensor([100.0, *[1.0] * 7], dtype=torch.float64))
    edit = edit_layer((often + seldom)[None], rows(1, 3, 1), Kept(cov), settings(lam_c=1.0)).delta((3, 8))
    assert float((edit @ often).norm()) < 0.02 * float((edit @ seldom).norm())


def test_the_order_of_concepts_does_not_matter() -> None:
    keys, residual, moment, order = rows(5, 12, 1), rows(5, 4, 2), Kept(covariance(12)), [4, 0, 3, 1, 2]
    one = edit_layer(keys, residual, moment, settings()).delta((4, 12))
    other = edit_layer(keys[order], residual[order], moment, settings()).delta((4, 12))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    for index in range(3):
        given = [rows(2, 6, 1), rows(2, 3, 2), covariance(6)]
        given[index][1, 2] = bad
        with pytest.raises(NumericsError, match="not finite"):
            edit_layer(given[0], given[1], Kept(given[2]), settings())


@pytest.mark.parametrize(("keys", "residual"), [((2, 5), (2, 3)), ((2, 6), (3, 3)), ((0, 6), (0, 3)), ((6,), (3,))])
def test_shapes_that_disagree_are_refused(keys: tuple[int, ...], residual: tuple[int, ...]) -> None:
    with pytest.raises(NumericsError, match="shapes"):
        edit_layer(torch.ones(keys), torch.ones(residual), Kept(covariance(6)), settings())


def test_a_covariance_without_ridge_that_lacks_directions_is_refused() -> None:
    held = torch.eye(6, dtype=torch.float64)[:2]
    with pytest.raises(NumericsError, match="singular"):
        edit_layer(rows(1, 6, 1), rows(1, 3, 2), Kept(held.T @ held), settings(shrink=0.0))


@pytest.mark.parametrize("replacement", ["cone", "green-tree", ""])
def test_the_last_word_becomes_the_replacements(replacement: str) -> None:
    model = ToyModel()
    concepts = ConceptList(preserve=("box",)).with_concept(Concept("big-ball", replacement))
    text = written(model, METHOD.fit(model.task(concepts), settings(**STRAIGHT)))
    goal = hidden(model, model.text, replacement, replacement, 1)
    before = hidden(model, model.text, "big-ball", "big-ball", 1)
    after = hidden(model, text, "big-ball", "big-ball", 1)
    assert float((after - goal).norm()) < 0.01 * float((before - goal).norm())


def test_only_the_chosen_layers_are_edited() -> None:
    model = ToyModel()

    def edited(**given: object) -> set[str]:
        return set(METHOD.fit(model.task(CONCEPTS), settings(**given)).text_encoder)

    names = [f"clip_l.encoder.layers.{layer}.mlp.fc2.weight" for layer in range(3)]
    assert edited() == set(names[:2])
    assert edited(first_layer=1, last_layer=-1) == set(names[1:])
    assert edited(first_layer=-3, last_layer=0) == {names[0]}
    for given in ({"first_layer": 2}, {"last_layer": 3}, {"first_layer": -4}):
        with pytest.raises(SettingError, match="no layers from"):
            edited(**given)


class Recorder:
    """The rows that every fc2 of a text encoder sees, and what it and the last edited layer answer."""

    def __init__(self, model: ToyModel, text: Any) -> None:
        self.model, self.text = model, text

    def at(self, prompt: str, place: int | slice, layer: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        block, seen = self.text.encoder.layers[layer], {}
        handle = block.mlp.fc2.register_forward_hook(lambda _m, args, out: seen.update(k=args[0], v=out))
        out = self.text(torch.tensor([self.model.ids(prompt)]), output_hidden_states=True)
        handle.remove()
        return (
            seen["k"][0, place].double(),
            seen["v"][0, place].double(),
            out.hidden_states[last + 1][0, place].double(),
        )


@pytest.mark.parametrize("variant", ["corrected", "as released"])
def test_layers_are_edited_in_turn_as_published(variant: str) -> None:
    """The whole of stage 2 by hand: a copy is edited layer by layer and measured again each time."""
    model, frames = (
        ToyModel(),
        ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    )
    concepts = CONCEPTS.with_preserved(tuple(f"thing{i} here" for i in range(20)))
    eraser = METHOD.fit(model.task(concepts), settings(lam_c=2.0, last_layer=-1, variant=variant))
    untouched, text = Recorder(model, model.text), copy.deepcopy(model.text)
    held = ["", *concepts.preserve]
    captions = [*held, *(frames[i % 6].format(prompt) for i, prompt in enumerate(held) if prompt and i % 6)]
    assert len(captions) == 25 + 20
    names, goal = ("ball", "big-orb"), torch.zeros(16, dtype=torch.float64)
    for frame in frames:
        prompt = frame.format("cone")
        goal += untouched.at(prompt, model.position(prompt, "cone"), 0, 2)[2] / 6
    for layer in range(3):
        passed = [untouched.at(prompt, slice(0, model.position(prompt, "") + 2), layer, 2)[0] for prompt in captions]
        cov = torch.cat(passed).T @ torch.cat(passed) / len(torch.cat(passed))
        keys, residual = [], []
        for name in names:
            prompts = [frame.format(name) for frame in frames]
            found = [Recorder(model, text).at(p, model.position(p, name), layer, 2) for p in prompts]
            keys.append(torch.stack([k for k, _, _ in found]).mean(0))
            current = torch.stack([v if variant == "as released" else h for _, v, h in found]).mean(0)
            residual.append((goal - current) / (3 - layer))
        weights = torch.full((2,), 2.0, dtype=torch.float64)
        expected = textbook(torch.stack(keys), torch.stack(residual), cov, 2.0, 0.5, weights, 0.01)
        edit = eraser.text_encoder[f"clip_l.encoder.layers.{layer}.mlp.fc2.weight"].delta((16, 32))
        assert float((edit - expected).norm() / expected.norm()) < 1e-4
        text.get_parameter(f"encoder.layers.{layer}.mlp.fc2.weight").data += expected.float()


def test_the_text_encoder_is_left_as_it_was() -> None:
    model = ToyModel()
    before = {name: value.clone() for name, value in model.text.state_dict().items()}
    METHOD.fit(model.task(CONCEPTS), settings(value="optimised", steps=2))
    assert all(torch.equal(before[name], value) for name, value in model.text.state_dict().items())
    assert all(not module._forward_hooks for module in model.text.modules())


def test_no_hook_stays_behind_when_the_text_encoder_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel()

    def fail(_rows: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(model, "read", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        METHOD.fit(model.task(CONCEPTS), settings())
    assert all(not module._forward_hooks for module in model.text.modules())


def test_the_optimised_value_makes_the_denoiser_see_the_replacement() -> None:
    model = ToyModel()
    concepts = ConceptList(preserve=("box",)).with_concept(Concept("ball", "cone"))
    given = {**STRAIGHT, "value": "optimised", "steps": 60, "lr": 0.05}
    edited = written(model, METHOD.fit(model.task(concepts), settings(**given)))
    value, start = (hidden(model, text, "ball", "ball", 1) for text in (edited, model.text))

    def seen(prompt: str, delta: Tensor) -> Tensor:
        block = model.text.get_submodule("encoder.layers.1")
        with hooked([(block, shifting(delta, torch.tensor([1])))]):
            return model.predict_noise(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), 0.5, model.run([prompt])[0])

    goal = seen("cone", torch.zeros(16))
    before, after = seen("ball", torch.zeros(16)), seen("ball", value - start)
    assert float((after - goal).norm()) < 0.5 * float((before - goal).norm())


@pytest.mark.parametrize(("variant", "drawn"), [("corrected", "cone"), ("as released", "ball")])
def test_the_optimised_value_is_bounded_and_its_pictures_are_whose_the_variant_says(variant: str, drawn: str) -> None:
    model = ToyModel()
    concepts = ConceptList(preserve=("box",)).with_concept(Concept("ball", "cone"))
    given = {**STRAIGHT, "value": "optimised", "steps": 3, "lr": 5.0, "clamp": 0.1, "variant": variant}
    eraser = METHOD.fit(model.task(concepts), settings(**given, first_layer=1))
    assert model.sampled == [[drawn]]
    if variant == "corrected":
        before = hidden(model, model.text, "ball", "ball", 1)
        after = hidden(model, written(model, eraser), "ball", "ball", 1)
        assert float((after - before).norm()) == pytest.approx(0.1 * float(before.norm()), rel=0.02)


def test_the_same_seed_gives_the_same_eraser() -> None:
    model = ToyModel()

    def fit(seed: int) -> WeightEdit:
        eraser = METHOD.fit(model.task(CONCEPTS), settings(value="optimised", steps=2, seed=seed))
        assert eraser.recipe.seed == seed
        return eraser.text_encoder["clip_l.encoder.layers.1.mlp.fc2.weight"]

    one, other, third = fit(1), fit(1), fit(2)
    assert all(torch.equal(one.tensors()[name], value) for name, value in other.tensors().items())
    assert not torch.equal(one.delta((16, 32)), third.delta((16, 32)))


def test_a_host_that_runs_in_inference_mode_is_served() -> None:
    model = ToyModel()
    with torch.inference_mode():
        eraser = METHOD.fit(model.task(CONCEPTS), settings(value="optimised", steps=2))
    assert not any(edit.delta((16, 32)).is_inference() for edit in eraser.text_encoder.values())


def test_a_task_that_cannot_be_done_is_refused() -> None:
    model = ToyModel()
    with pytest.raises(ConceptError, match="no concept"):
        METHOD.fit(model.task(ConceptList(preserve=("box",))), settings())
    bare = model.task(CONCEPTS)
    object.__setattr__(bare, "model", None)
    with pytest.raises(FamilyError, match="needs the model"):
        METHOD.fit(bare, settings())
    model.text = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(FamilyError, match=r"mlp\.fc2"):
        METHOD.fit(model.task(CONCEPTS), settings())
    broken = ToyModel()
    broken.text.get_parameter("encoder.layers.0.mlp.fc1.weight").data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        METHOD.fit(broken.task(CONCEPTS), settings())


def test_a_text_encoder_that_runs_more_rows_than_prompts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel()
    read = model.read
    monkeypatch.setattr(model, "read", lambda rows: read([*rows, model.ids("")]))
    with pytest.raises(FamilyError, match="rows for"):
        METHOD.fit(model.task(CONCEPTS), settings())
