"""Sums of edits against sums of their products, and smaller edits against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra import edits
from lethe.erasers.errors import NumericsError
from lethe.erasers.result import Bottleneck, ContextOperator, WeightEdit
from torch import Tensor

OUT, WIDTH = 11, 17


def low(rank: int, seed: int, out: int = OUT) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, WIDTH, generator=generator), torch.randn(out, rank, generator=generator)
    return WeightEdit(down=down, up=up)


def dense(seed: int) -> WeightEdit:
    return WeightEdit(dense=torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed)))


def sparse(*places: int) -> WeightEdit:
    return WeightEdit(indices=torch.tensor(places), values=torch.arange(1.0, len(places) + 1))


def whole(edit: WeightEdit) -> Tensor:
    return edit.delta((OUT, WIDTH))


@pytest.mark.parametrize("ranks", [(1,), (1, 1), (1, 3, 2), (7, 7)])
def test_a_sum_of_low_rank_edits_is_the_sum_of_products(ranks: tuple[int, ...]) -> None:
    own = [low(rank, seed) for seed, rank in enumerate(ranks)]
    found = edits.summed(own)
    assert torch.allclose(whole(found), sum(whole(edit) for edit in own), atol=1e-5)
    assert (found.dense is None) == (sum(ranks) < OUT)
    crossed = sum(edit.up for edit in own) @ sum(edit.down for edit in own) if len(set(ranks)) == 1 else None
    assert crossed is None or len(ranks) == 1 or not torch.allclose(whole(found), crossed, atol=0.1)


def test_sums_of_every_mixture_of_forms() -> None:
    for own in ([low(2, 0), dense(1)], [dense(2), sparse(0, 5)], [low(1, 3), sparse(3), dense(4)]):
        assert torch.allclose(whole(edits.summed(own)), sum(whole(edit) for edit in own), atol=1e-5)
    both = edits.summed([sparse(0, 5), sparse(5, 9)])
    assert both.indices is not None
    assert torch.equal(whole(both), whole(sparse(0, 5)) + whole(sparse(5, 9)))


def test_edits_of_different_sizes_are_refused() -> None:
    with pytest.raises(NumericsError, match="different sizes"):
        edits.summed([low(1, 0), low(1, 1, out=OUT + 1)])


def test_operators_add_up_their_moves_and_biases() -> None:
    features = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    first = ContextOperator(down=low(2, 1).down, up=low(2, 1, WIDTH).up)
    second = ContextOperator(down=low(1, 2).down, up=low(1, 2, WIDTH).up, bias=torch.ones(WIDTH))
    moved = sum(operator.apply(features) - features for operator in (first, second))
    found = edits.summed_operators([first, second])
    assert found.rank == 3
    assert torch.allclose(found.apply(features) - features, moved, atol=1e-4)


def test_bottlenecks_side_by_side_add_what_each_adds() -> None:
    def one(seed: int) -> Bottleneck:
        g = torch.Generator().manual_seed(seed)
        return Bottleneck(*(torch.randn(*shape, generator=g) for shape in ((3, 6), (3,), (6, 3), (6,))))

    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(9))
    own = [one(0), edits.scaled_bottleneck(one(1), 0.5)]
    expected = x + (one(0).apply(x) - x) + 0.5 * (one(1).apply(x) - x)
    assert torch.allclose(edits.summed_bottlenecks(own).apply(x), expected, atol=1e-5)


@pytest.mark.parametrize("edit", [low(6, 5), dense(6)], ids=["factors", "dense"])
def test_a_smaller_edit_is_the_truncated_svd(edit: WeightEdit) -> None:
    found, share = edits.shrunk(edit, 3)
    left, values, right = torch.linalg.svd(whole(edit).double())
    nearest = left[:, :3] * values[:3] @ right[:3]
    assert found.up is not None and found.up.shape == (OUT, 3)
    assert torch.allclose(whole(found).double(), nearest, atol=1e-4)
    assert share == pytest.approx(float(values[:3].square().sum() / values.square().sum()), abs=1e-5)


def test_a_small_enough_edit_stays_itself() -> None:
    edit = low(2, 0)
    assert edits.shrunk(edit, 2)[0] is edit


def test_strength_multiplies_once() -> None:
    for edit in (low(2, 1), dense(2), sparse(1, 7)):
        assert torch.allclose(whole(edits.scaled(edit, -0.5)), -0.5 * whole(edit))


def test_inner_products_and_what_edits_read() -> None:
    first, second = low(2, 1), low(3, 2)
    assert edits.inner_product(first, second) == pytest.approx(float((whole(first) * whole(second)).sum()), rel=1e-4)
    assert edits.inner_product(first, dense(3)) == pytest.approx(
        float((whole(first) * whole(dense(3))).sum()), rel=1e-4
    )
    small = edits.reduced(*edits.factors(second))
    assert torch.allclose(small.T @ small, whole(second).T @ whole(second), atol=1e-4)
    basis = edits.read_directions(*edits.factors(second), 1.0)
    assert torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-5)
    assert torch.allclose(whole(second) @ basis @ basis.T, whole(second), atol=1e-4)
    assert edits.read_directions(*edits.factors(second), 0.1).shape == (WIDTH, 1)


def test_blocks_by_name() -> None:
    names = {
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": "down_blocks.0.attentions.1."
        "transformer_blocks.0",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight": "mid_block.attentions.0.transformer_blocks.0",
        "up_blocks.1.resnets.0.conv1.weight": "up_blocks.1",
        "conv_in.weight": "conv_in.weight",
    }
    assert {name: edits.block_of(name) for name in names} == names
