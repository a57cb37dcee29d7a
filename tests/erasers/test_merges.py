"""Ways of merging against their equations, on random edits of a toy model's projections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.algebra.context import TEMPLATES
from lethe.erasers.algebra.edits import as_edit
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError, SettingError
from lethe.erasers.measure.conflicts import conflict_table, conflicts
from lethe.erasers.merges.constrained import constrain
from lethe.erasers.registry import merge_named, merges
from lethe.erasers.result import Bottleneck, ContextOperator, Eraser, Recipe, WeightEdit
from lethe.erasers.stack import Stack
from lethe.erasers.task import Task
from torch import Tensor
from toy_tower import TOKENS, ToyModel

WIDTH, OUT = 16, 8
SITES = tuple(f"block{i}.attn2.to_{role}.weight" for i in range(2) for role in "kv")


def recipe(name: str, replacement: str = "") -> Recipe:
    concept = {"text": name, "replacement": replacement, "synonyms": ["old " + name], "weight": 1.0}
    return Recipe("toy", {}, (concept,), ("tree lamp", "red house", "blue cat"), "demo", "toy")


def low(seed: int, rank: int = 1) -> WeightEdit:
    g = torch.Generator().manual_seed(seed)
    return WeightEdit(down=torch.randn(rank, WIDTH, generator=g), up=torch.randn(OUT, rank, generator=g))


def adapter(name: str, seed: int, rank: int = 1) -> Eraser:
    return Eraser(recipe(name), adapters={site: low(seed * 10 + i, rank) for i, site in enumerate(SITES)})


def operator(name: str, seed: int) -> Eraser:
    g = torch.Generator().manual_seed(seed)
    own = ContextOperator(down=0.1 * torch.randn(1, WIDTH, generator=g), up=torch.randn(WIDTH, 1, generator=g))
    return Eraser(recipe(name), context={"clip_l": own})


def stack_of(*erasers: Eraser, strength: float = 1.0) -> Stack:
    return Stack().with_erasers(erasers, strength)


def merged(name: str, stack: Stack, **given: object) -> Eraser:
    mode = merge_named(name)
    return mode.merge(stack, task_of(stack), mode.spec.settings(given)).eraser


def task_of(stack: Stack) -> Task:
    task = ToyModel().task(stack.concepts())
    return replace(task, family=replace(task.family, width=WIDTH))


def whole(edit: WeightEdit) -> Tensor:
    return edit.delta((OUT, WIDTH))


@pytest.mark.parametrize("name", sorted(set(merges()) - {"learned"}))
def test_every_mode_leaves_the_stack_alone_and_says_what_it_merged(name: str) -> None:
    stack = stack_of(adapter("ball", 1), adapter("fish", 2), strength=0.5)
    before = [{n: t.clone() for n, t in entry.eraser.tensors().items()} for entry in stack.entries]
    found = merged(name, stack)
    for entry, tensors in zip(stack.entries, before, strict=True):
        assert all(torch.equal(tensor, tensors[n]) for n, tensor in entry.eraser.tensors().items())
    assert found.recipe.method == f"merged: {name}"
    assert found.recipe.names == ("ball", "fish", "old ball", "old fish")
    assert "ball (toy) x 0.5; fish (toy) x 0.5" in str(found.recipe.settings["stack"])
    assert found.recipe.preserve == ("tree lamp", "red house", "blue cat")


@pytest.mark.parametrize("name", sorted(merges()))
def test_every_mode_refuses_an_empty_stack_and_those_that_need_the_model_say_so(name: str) -> None:
    mode = merge_named(name)
    settings = mode.spec.settings({})
    with pytest.raises(SettingError, match=r"nothing to merge|text encoder"):
        mode.merge(stack_of(adapter("ball", 1), strength=0.0), None, settings)
    if mode.needs_model:
        with pytest.raises(SettingError, match="MODEL and CLIP"):
            mode.merge(stack_of(adapter("ball", 1)), None, settings)
    else:
        assert mode.merge(stack_of(adapter("ball", 1)), None, settings).eraser.adapters


def test_sum_adds_products_at_their_strengths() -> None:
    stack = stack_of(adapter("ball", 1), strength=0.5).with_erasers([adapter("fish", 2), operator("cat", 3)], -1.0)
    found = merged("sum", stack)
    for i, site in enumerate(SITES):
        assert torch.allclose(whole(found.adapters[site]), 0.5 * whole(low(10 + i)) - whole(low(20 + i)), atol=1e-5)
    features = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    move = operator("cat", 3).context["clip_l"].apply(features) - features
    assert torch.allclose(found.context["clip_l"].apply(features), features - move, atol=1e-5)
    assert all(edit.down is not None and len(edit.down) == 1 for edit in merged("sum", stack, rank=1).adapters.values())


def test_gated_keeps_each_eraser_to_itself() -> None:
    stack, mode = stack_of(adapter("ball", 1), operator("cat", 2), strength=0.5), merge_named("gated")
    task = task_of(stack)
    found = mode.merge(stack, task, mode.spec.settings({"threshold": 0.25})).eraser
    assert [member.gate.threshold for member in found.members] == [0.25, 0.25]
    assert [member.eraser.recipe.names[0] for member in found.members] == ["ball", "cat"]
    assert torch.allclose(whole(found.members[0].eraser.adapters[SITES[0]]), 0.5 * whole(low(10)))
    (own,) = task.encode(["ball"])
    assert found.members[0].gate.openness(own.states, own.ids) == pytest.approx(1.0)
    indices = torch.tensor([3, 7])
    scattered = Eraser(recipe("dog"), adapters={SITES[0]: WeightEdit(indices=indices, values=torch.ones(2))})
    dense = merged("gated", stack_of(scattered)).members[0].eraser.adapters[SITES[0]].dense
    assert dense is not None
    assert torch.equal(dense.flatten()[indices], torch.ones(2))
    assert float(dense.sum()) == 2


def test_gated_erasers_are_not_merged_again() -> None:
    found = merged("gated", stack_of(adapter("ball", 1)))
    with pytest.raises(SettingError, match="gated parts"):
        merged("sum", stack_of(found))


def test_orthogonal_leaves_the_inputs_of_earlier_erasers_to_them() -> None:
    first, second = adapter("ball", 1, rank=2), adapter("fish", 2, rank=2)
    found = merged("orthogonal", stack_of(first, second), share=1.0)
    for i, site in enumerate(SITES):
        read = low(10 + i, 2).down.T
        assert torch.allclose(whole(found.adapters[site]) @ read, whole(low(10 + i, 2)) @ read, atol=1e-4)
        span = torch.linalg.qr(read)[0]
        rest = torch.eye(WIDTH) - span @ span.T
        expected = whole(low(10 + i, 2)) + whole(low(20 + i, 2)) @ rest
        assert torch.allclose(whole(found.adapters[site]), expected, atol=1e-4)
    network = Bottleneck(torch.ones(1, 4), torch.ones(1), torch.ones(4, 1), torch.ones(4))
    with pytest.raises(SettingError, match="sum or gated"):
        merged("orthogonal", stack_of(Eraser(recipe("x"), modules={"a": network})))


def test_constrained_does_exactly_what_each_eraser_does_to_its_names() -> None:
    first, second = adapter("ball", 1), adapter("fish", 2, rank=2)
    g = torch.Generator().manual_seed(5)
    rows = [torch.randn(3, WIDTH, generator=g), torch.randn(2, WIDTH, generator=g)]
    kept = torch.randn(40, WIDTH, generator=g).double()
    gram = kept.T @ kept
    found = constrain([first.adapters, second.adapters], rows, gram, 0.0)
    for site in SITES:
        for eraser, row in zip((first, second), rows, strict=True):
            wanted = row @ whole(eraser.adapters[site]).T
            assert torch.allclose(row @ whole(found[site]).T, wanted, atol=1e-3)
        # No edit that meets the constraint moves what is kept less: the gradient lies in the constraint's own span.
        wanted = torch.cat(rows).double()
        slope = whole(found[site]).double() @ gram
        left = slope - slope @ torch.linalg.pinv(wanted) @ wanted
        assert float(left.norm() / slope.norm()) < 1e-4
    repeated = constrain([first.adapters], [rows[0].repeat(2, 1)], gram, 0.0)
    once = constrain([first.adapters], [rows[0]], gram, 0.0)
    assert torch.allclose(whole(repeated[SITES[0]]), whole(once[SITES[0]]), atol=1e-3)


@pytest.mark.parametrize("name", ["fused", "constrained"])
def test_what_solves_on_prompts_takes_operators_for_edits_of_every_site(name: str) -> None:
    stack = stack_of(operator("ball", 1))
    found = merged(name, stack, lam=1e-6, **({"preserve_scale": 0.0} if name == "fused" else {}))
    task = task_of(stack)
    (ball,) = task.encode(["ball"])
    row = ball.states[1]
    for site, weight in task.loaded().weights().items():
        move = weight @ (as_edit(operator("ball", 1).context["clip_l"]).delta((WIDTH, WIDTH)) @ row)
        assert torch.allclose(whole(found.adapters[site]) @ row, move, atol=0.02)
    network = Bottleneck(torch.ones(1, 4), torch.ones(1), torch.ones(4, 1), torch.ones(4))
    with pytest.raises(SettingError, match="read text features"):
        merged(name, stack_of(Eraser(recipe("x"), modules={"a": network})))


def test_fused_is_given_every_position_of_every_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def fuse(adapters: list[object], rows: list[Tensor], *rest: object) -> dict[str, WeightEdit]:
        given.extend(rows)
        return {SITES[0]: low(1)}

    monkeypatch.setattr("lethe.erasers.merges.fused.fuse", fuse)
    merged("fused", stack_of(adapter("ball", 1), adapter("fish", 2)), templates="object")
    names, sentences = 2, len(TEMPLATES["object"])
    assert [tuple(rows.shape) for rows in given] == [(names * sentences * (TOKENS - 1), WIDTH)] * 2


def test_ties_trims_elects_and_averages() -> None:
    erasers = [adapter("ball", 1, 3), adapter("fish", 2, 3), adapter("cat", 3, 3)]
    found = merged("ties", stack_of(*erasers), density=0.5, rank=0)
    for site in SITES:
        deltas = torch.stack([whole(eraser.adapters[site]) for eraser in erasers])
        kept = torch.zeros_like(deltas)
        for i, delta in enumerate(deltas):
            top = delta.abs().flatten().topk(delta.numel() // 2).indices
            kept[i].view(-1)[top] = delta.flatten()[top]
        sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
        agree = kept.sign() == sign
        expected = (kept * agree).sum(0) / agree.sum(0).clamp(min=1)
        assert torch.allclose(whole(found.adapters[site]), expected, atol=1e-5)


def test_dare_drops_rescales_and_is_the_same_for_one_seed() -> None:
    stack = stack_of(adapter("ball", 1, 3))
    state = torch.random.get_rng_state()
    found, again, other = (merged("dare", stack, density=0.5, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    for i, site in enumerate(SITES):
        delta, own = whole(low(10 + i, 3)), whole(found.adapters[site])
        dropped = own == 0
        assert 0.2 < float(dropped.float().mean()) < 0.8
        assert torch.allclose(own[~dropped], 2 * delta[~dropped], atol=1e-4)
        assert torch.equal(own, whole(again.adapters[site]))
        assert not torch.equal(own, whole(other.adapters[site]))


def test_sparse_keeps_the_blocks_that_carry_most() -> None:
    large = {site: low(10 + i) for i, site in enumerate(SITES[:2])}
    small = {site: WeightEdit(down=0.01 * low(i).down, up=low(i).up) for i, site in enumerate(SITES[2:])}
    found = merged("sparse", stack_of(Eraser(recipe("ball"), adapters=large | small)), share=0.9)
    assert set(found.adapters) == set(SITES[:2])
    assert set(merged("sparse", stack_of(adapter("ball", 1)), share=1.0).adapters) == set(SITES)


def test_a_stack_is_of_one_family_and_names_each_concept_once() -> None:
    other = Eraser(replace(recipe("x"), family="sd1"), adapters={SITES[0]: low(1)})
    with pytest.raises(FamilyError, match="demo, sd1"):
        stack_of(adapter("ball", 1), other)
    concepts = stack_of(adapter("ball", 1), adapter("Ball", 2), adapter("old ball", 3)).concepts()
    assert concepts == ConceptList((Concept("ball", "", ("old ball",)),), ("tree lamp", "red house", "blue cat"))


def test_conflicts_are_the_share_of_a_later_edit_on_what_an_earlier_one_reads() -> None:
    first, second = adapter("ball", 1), adapter("fish", 2)
    same = Eraser(recipe("again"), adapters={site: low(10 + i) for i, site in enumerate(SITES[:2])})
    found = conflicts(stack_of(first, second, same))
    assert found.shared.tolist() == [[4, 4, 2], [4, 4, 2], [2, 2, 2]]
    assert float(found.overlap[2, 0]) == pytest.approx(1, abs=1e-4)
    assert float(found.alignment[2, 0]) == pytest.approx(1, abs=1e-4)
    shares, cosines, apart, together = [], [], 0.0, 0.0
    for i, site in enumerate(SITES):
        one, two = whole(low(10 + i)), whole(low(20 + i))
        read = low(10 + i).down / low(10 + i).down.norm()
        shares.append(float((two @ read.T).square().sum() / two.square().sum()))
        cosines.append(abs(float((one * two).sum() / one.norm() / two.norm())))
        count = 2 if site in SITES[:2] else 1
        apart += float(count * one.norm() + two.norm())
        together += float((count * one + two).norm())
    assert float(found.overlap[1, 0]) == pytest.approx(sum(shares) / 4, abs=1e-4)
    assert float(found.alignment[1, 0]) == pytest.approx(sum(cosines) / 4, abs=1e-4)
    assert found.together == pytest.approx(together / apart, abs=1e-4)
    table = conflict_table(stack_of(first, second, same))
    assert "1.00  1.00  1. and 3.  <-" in table
    assert "2. fish (toy), strength 1" in table
    assert "No two of them" in conflict_table(stack_of(first, operator("cat", 1)))
