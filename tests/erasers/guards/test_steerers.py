"""Concept Steerers: the vector, where it is added, and what it changes of a prompt's features."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError
from lethe.erasers.guards import steerers
from lethe.erasers.guards.steerers import ALIGNED, GUARD, MEAN, Steered, layer_at, steering
from lethe.erasers.learn.sparse_code import SparseCode, fit_sparse_code
from torch import Tensor, nn
from toy_tower import TOKENS, ToyModel

BALL = (
    ConceptList().with_concept(Concept("ball", "box", ("orb",))).with_preserved(("tree lamp", "old house", "red cat"))
)


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel()


def part(model: ToyModel, **given: float | str) -> Steered:
    found = GUARD.plan(model.task(BALL), GUARD.spec.settings({"steps": 30, "k": 4, **given}))
    assert isinstance(found.text, Steered) and found.reader is found.text
    return found.text


def test_the_vector_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    states, phrase = (torch.randn(n, 8, generator=generator) + 3 for n in (200, TOKENS))
    code = fit_sparse_code(states, 4, 3, 30, 64, 1e-2, generator)
    w_e, w_d = code.scale * code.encoder, code.decoder / code.scale
    a = torch.relu((phrase - code.centre) @ w_e.T + code.bias)
    assert int((a > 0).sum(1).max()) > 3
    expected = a @ w_d.T
    expected[0] = 0
    assert torch.allclose(steering(code, phrase, 2, ALIGNED, False), expected, atol=1e-4)
    mean = steering(code, phrase, 2, MEAN, False)
    assert torch.allclose(mean[1:], (expected[1:3].mean(0)).expand(TOKENS - 1, -1), atol=1e-4)
    assert not mean[0].any()
    kept = torch.where(a >= a.topk(3).values[:, -1:], a, 0) @ w_d.T
    assert torch.allclose(steering(code, phrase, 2, ALIGNED, True)[1:], kept[1:], atol=1e-4)


def test_features_change_by_what_the_rest_of_the_encoder_makes_of_it(model: ToyModel) -> None:
    own, norm = part(model), model.text.get_submodule(_name(model, "final_layer_norm"))
    assert own.layer is model.text.get_submodule(layer_at(model.text, 0.75))
    found = own.read([model.ids("red ball"), model.ids("old cat")])
    assert found is not None and found.shape == (2 * TOKENS, 16)
    with torch.no_grad():
        before = _last(model, "red ball")
        assert torch.allclose(found[:TOKENS], norm(before + own.vector) - norm(before), atol=1e-5)
    assert not torch.allclose(found[:TOKENS], found[TOKENS:], atol=1e-3)


def test_nothing_stays_in_the_encoder(model: ToyModel) -> None:
    before = model.run(["red ball"])[0]
    part(model).read([model.ids("red ball")])
    assert torch.equal(model.run(["red ball"])[0], before)


def test_strength_is_minus_lambda_and_none_is_nothing(model: ToyModel) -> None:
    one, two, none = (part(model, strength=strength) for strength in (0.5, 1.0, 0.0))
    assert torch.allclose(two.vector, 2 * one.vector) and bool(one.vector.any())
    assert none.read([model.ids("red ball")]) is None
    along = (_last(model, "ball, orb") - _last(model, "")) * one.vector
    assert float(along[1:3].sum()) < 0


def test_settings_reach_the_vector(model: ToyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[SparseCode] = []
    fit = steerers.fit_sparse_code
    monkeypatch.setattr(
        steerers, "fit_sparse_code", lambda *args, **given: codes.append(fit(*args, **given)) or codes[-1]
    )
    plain, kept, mean = (part(model, **given).vector for given in ({}, {"latents": "kept"}, {"positions": "mean"}))
    phrase = _last(model, "ball, orb")
    for found, is_kept in ((plain, False), (kept, True)):
        assert torch.allclose(found, -0.5 * steering(codes[0], phrase, 2, ALIGNED, is_kept), atol=1e-4)
    assert not torch.allclose(plain, kept, atol=1e-3)
    assert torch.allclose(mean[1:], plain[1:3].mean(0).expand(TOKENS - 1, -1), atol=1e-4)


def test_the_layer_is_found_by_its_depth(model: ToyModel) -> None:
    names = [layer_at(model.text, depth) for depth in (0.0, 0.4, 0.75, 1.0)]
    assert [name.rsplit(".", 1)[1] for name in names] == ["0", "1", "2", "2"]
    with pytest.raises(FamilyError, match="no 'layers'"):
        layer_at(nn.Sequential(nn.Linear(2, 2)), 0.5)


def test_features_from_before_the_layer_are_refused() -> None:
    with pytest.raises(FamilyError, match="do not pass"):
        part(ToyModel(layers=2))
    assert part(ToyModel(layers=2), depth=0.0).read([ToyModel().ids("ball")]) is not None


def _name(model: ToyModel, end: str) -> str:
    return next(name for name, _ in model.text.named_modules() if name.endswith(end))


def _last(model: ToyModel, prompt: str) -> Tensor:
    """What the final norm gets, `[tokens, d]`."""
    seen: list[Tensor] = []
    norm = model.text.get_submodule(_name(model, "final_layer_norm"))
    handle = norm.register_forward_hook(lambda _module, args, _out: seen.append(args[0].clone()))
    model.run([prompt])
    handle.remove()
    return seen[0][0]
