"""Files of other programs: made here in their layouts from a known edit, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign_files import (
    ATTENTION,
    CONV,
    FC1,
    NORM,
    OUT_BIAS,
    QUERY,
    SITES,
    full_text,
    full_unet,
    lora,
    merged,
    receler,
    thin_edit,
    tiny_base,
)
from lethe.erasers.errors import EraserFileError, LetheError, SettingError
from lethe.erasers.exchange.base import ADAPTERS, TEXT, Base, Owner
from lethe.erasers.exchange.factors import changes, factorise
from lethe.erasers.exchange.reading import import_eraser
from lethe.erasers.exchange.writing import export_eraser, writable_layouts
from lethe.erasers.registry import layouts
from lethe.erasers.result import ContextOperator, Eraser, Recipe, WeightEdit
from safetensors.torch import save_file
from torch import Tensor

KEY, VALUE = ((ADAPTERS, name) for name in SITES)
RECIPE = Recipe("uce", {}, ({"text": "Van Gogh", "synonyms": ("Vincent",)},), (), "sd1", "abc")


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def _read(path: Path, base: Base, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Eraser:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata=metadata)
    return import_eraser(path, base)


def _edits(eraser: Eraser) -> dict[Owner, WeightEdit]:
    return {(part, name): edit for part in (ADAPTERS, TEXT) for name, edit in getattr(eraser, part).items()}


def _check(eraser: Eraser, base: Base, factors: dict[Owner, tuple[Tensor, Tensor]], bound: float = 1e-6) -> None:
    found = _edits(eraser)
    assert set(found) == set(factors)
    for owner, (up, down) in factors.items():
        delta = found[owner].delta(base.shapes[owner])
        wanted = (up @ down).reshape(delta.shape)
        assert float((delta - wanted).norm() / wanted.norm()) < bound, owner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "given.safetensors"


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_a_unet(base: Base, path: Path, prefix: str, whole: bool) -> None:
    """ESD and UCE publish what they changed, RECE and MACE all."""
    owners = [KEY, VALUE, (ADAPTERS, QUERY), (ADAPTERS, OUT_BIAS), (ADAPTERS, CONV)]
    factors = thin_edit(base, *owners)
    edited = merged(base, factors)
    tensors = full_unet(base, edited) if whole else {name: value for (_, name), value in edited.items()}
    eraser = _read(path, base, {f"{prefix}{name}": value for name, value in tensors.items()})
    _check(eraser, base, factors)
    assert eraser.recipe.method == "imported: UNet weights"
    assert eraser.recipe.encoder == "abc"
    assert eraser.recipe.names == ()


def test_what_is_the_models_own_is_no_edit(base: Base, path: Path) -> None:
    """A file in half precision of a model in float32, and the other way round, differ by rounding everywhere."""
    half = {name: value.half() for name, value in full_unet(base, {}).items()}
    with pytest.raises(EraserFileError, match="those of the loaded model"):
        _read(path, base, half)
    factors = thin_edit(base, VALUE)
    edited = merged(base, factors)
    eraser = _read(path, base, {**half, VALUE[1]: edited[VALUE].half()})
    assert set(eraser.adapters) == {VALUE[1]}
    rounded = Base(base.family, base.sites, base.shapes, lambda o: base.read(o).bfloat16().float(), base.native)
    assert set(_read(path, rounded, full_unet(base, edited)).adapters) == {VALUE[1]}


def test_few_changed_numbers_stay_few(base: Base, path: Path) -> None:
    value = base.read(VALUE).clone()
    value[3, :5] = 0.0
    edit = _read(path, base, {VALUE[1]: value}).adapters[VALUE[1]]
    assert edit.values is not None
    assert len(edit.values) == 5
    assert torch.equal(edit.delta(base.shapes[VALUE]), value - base.read(VALUE))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_checkpoint_under_the_original_names(base: Base, path: Path, prefix: str) -> None:
    factors = thin_edit(base, VALUE, (TEXT, FC1))
    edited = merged(base, factors)
    unet = {f"{prefix}{base.native[name]}": value for name, value in full_unet(base, edited).items()}
    text = {f"cond_stage_model.transformer.{name}": value for name, value in full_text(base, edited).items()}
    others = {"first_stage_model.x.weight": torch.zeros(3), "betas": torch.zeros(4), "model_ema.num": torch.zeros(2)}
    if not prefix:  # A bare file is one network.
        text, others, factors = {}, {}, {VALUE: factors[VALUE]}
        unet = {name: value for name, value in unet.items() if name.startswith("input_blocks.1.1.")}
    eraser = _read(path, base, {**unet, **text, **others})
    _check(eraser, base, factors)
    assert eraser.recipe.method == "imported: checkpoint"


@pytest.mark.parametrize("prefix", ["", "text_encoder."])
def test_a_text_encoder(base: Base, path: Path, prefix: str) -> None:
    """AdvUnlearn publishes all of it."""
    factors = thin_edit(base, (TEXT, FC1), (TEXT, NORM))
    tensors = {f"{prefix}{name}": value for name, value in full_text(base, merged(base, factors)).items()}
    tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _check(_read(path, base, tensors), base, factors)


def test_receler(base: Base, path: Path) -> None:
    given = receler(base)
    found = _read(path, base, given).modules
    assert set(found) == {
        f"{ATTENTION}.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
    }
    own = found[f"{ATTENTION}.transformer_blocks.0.attn2"]
    assert torch.equal(own.up, given[f"{ATTENTION}.up.weight"])
    assert torch.equal(own.down_bias, given[f"{ATTENTION}.down.bias"])
    inside = {key.replace(".0.down.", ".0.transformer_blocks.0.attn2.adapter.down."): v for key, v in given.items()}
    inside = {key.replace(".0.up.", ".0.transformer_blocks.0.attn2.adapter.up."): v for key, v in inside.items()}
    assert set(_read(path, base, inside).modules) == set(found)
    with pytest.raises(EraserFileError, match="lacks its 'up_bias'"):
        _read(path, base, {key: value for key, value in given.items() if key != f"{ATTENTION}.up.bias"})


def _flat(owner: Owner) -> str:
    return owner[1].removesuffix(".weight").replace(".", "_")


SPELLINGS = {
    "kohya": (lambda o: f"lora_unet_{_flat(o)}", (".lora_up.weight", ".lora_down.weight")),
    "kohya, original names": (
        lambda o: f"lora_unet_{_flat(o).replace('down_blocks_0_attentions_0', 'input_blocks_1_1')}",
        (".lora_up.weight", ".lora_down.weight"),
    ),
    "peft": (lambda o: f"unet.{o[1].removesuffix('.weight')}", (".lora_B.weight", ".lora_A.weight")),
    "peft, bare": (lambda o: o[1].removesuffix(".weight"), (".lora_B.default.weight", ".lora_A.default.weight")),
    "diffusers": (lambda o: f"unet.{o[1].removesuffix('.weight')}", (".lora.up.weight", ".lora.down.weight")),
    "attention processors": (
        lambda o: o[1].removesuffix(".weight").replace(".to_", ".processor.to_"),
        ("_lora.up.weight", "_lora.down.weight"),
    ),
    "ComfyUI": (
        lambda o: f"diffusion_model.{o[1].removesuffix('.weight').replace(ATTENTION, 'input_blocks.1.1')}",
        (".lora_up.weight", ".lora_down.weight"),
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_loras_of_every_spelling(base: Base, path: Path, spelling: str, alpha: float | None) -> None:
    """SPM, LECO, Concept Sliders: kohya's names; without an alpha the product stands as it is."""
    spell, suffixes = SPELLINGS[spelling]
    factors = thin_edit(base, KEY, VALUE, (ADAPTERS, QUERY), (ADAPTERS, CONV), rank=2)
    eraser = _read(path, base, lora(factors, spell, suffixes, base.shapes, alpha), {"prompts": "nude, naked"})
    _check(eraser, base, factors)
    assert eraser.recipe.names == ("nude", "naked")


def test_a_whole_number_as_alpha(base: Base, path: Path) -> None:
    factors = thin_edit(base, VALUE)
    tensors = lora(factors, *SPELLINGS["kohya"], base.shapes, 1.0)
    _check(_read(path, base, {**tensors, f"lora_unet_{_flat(VALUE)}.alpha": torch.tensor(1)}), base, factors)


@pytest.mark.parametrize("layout", ["ComfyUI LoRA", "kohya LoRA", "diffusers LoRA"])
def test_every_export_comes_back(base: Base, path: Path, layout: str) -> None:
    draw = torch.Generator().manual_seed(3)
    operator = ContextOperator(down=torch.randn(2, 768, generator=draw), up=torch.randn(768, 2, generator=draw) / 50)
    rows, columns = base.shapes[KEY]
    adapters = {KEY[1]: WeightEdit(down=torch.randn(1, columns), up=torch.randn(rows, 1)), CONV: _thin(base, CONV)}
    text = {FC1: WeightEdit(dense=0.1 * torch.randn(base.shapes[TEXT, FC1], generator=draw))}
    eraser = Eraser(RECIPE, {"clip_l": operator}, adapters, text)
    found = export_eraser(eraser, base, layout)
    found.save(path)
    back = import_eraser(path, base)
    wanted, got = changes(eraser, base), changes(back, base)
    assert set(wanted) == set(got)
    for owner, change in wanted.items():
        assert float((got[owner].matrix() - change.matrix()).norm() / change.matrix().norm()) < 1e-6, owner
    assert back.recipe.names == ("Van Gogh", "Vincent")
    assert layout in writable_layouts()
    plain = (base.read(KEY) + adapters[KEY[1]].delta(base.shapes[KEY])) @ (torch.eye(768) + operator.up @ operator.down)
    edited = base.read(KEY) + wanted[KEY].matrix()
    assert float((edited - plain).norm() / plain.norm()) < 1e-6


def _thin(base: Base, name: str) -> WeightEdit:
    up, down = thin_edit(base, (ADAPTERS, name))[ADAPTERS, name]
    return WeightEdit(down=down, up=up)


def test_a_cut_rank_keeps_what_it_says(base: Base) -> None:
    delta = torch.randn(base.shapes[VALUE], generator=torch.Generator().manual_seed(4))
    eraser = Eraser(RECIPE, adapters={VALUE[1]: WeightEdit(dense=delta)})
    for rank in (1, 5, 31):
        found = export_eraser(eraser, base, "kohya LoRA", rank)
        name = f"lora_unet_{_flat(VALUE)}"
        down = found.tensors[f"{name}.lora_down.weight"]
        kept = found.tensors[f"{name}.lora_up.weight"] @ down * (found.tensors[f"{name}.alpha"] / len(down))
        share = torch.linalg.svdvals(delta)[:rank].square().sum() / delta.square().sum()
        assert len(down) == rank
        assert float(found.metadata["energy_kept"]) == pytest.approx(float(share), abs=1e-5)
        assert float(1 - (delta - kept).square().sum() / delta.square().sum()) == pytest.approx(float(share), abs=1e-5)
        assert f"{float(share):.1%}" in found.summary


@pytest.mark.parametrize("shape", [(1, 1), (7, 77), (77, 7), (231, 30)])
def test_factors_are_exact_at_the_rank_there_is(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(5)
    rank = min(*shape, 3)
    sizes = torch.tensor([1.0, 1e-2, 1e-4])[:rank]
    matrix = torch.randn(shape[0], rank, generator=draw) * sizes @ torch.randn(rank, shape[1], generator=draw)
    found = factorise(matrix)
    assert len(found.down) == rank
    assert found.kept == 1
    assert float((found.up @ found.down - matrix).norm() / matrix.norm()) < 1e-6
    assert len(factorise(torch.zeros(shape)).down) == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lora_unet_nowhere.lora_up.weight", "'lora_unet_nowhere.lora_up.weight'"),
        (f"lora_unet_{ATTENTION.replace('.', '_')}_proj_in.hada_w1_a", "hada_w1_a"),
        (f"lora_unet_{ATTENTION.replace('.', '_')}_proj_in.dora_scale", "dora_scale"),
        ("conv_in.weight", "'conv_in.weight'"),
    ],
)
def test_unknown_tensors_are_named_and_nothing_is_loaded(base: Base, path: Path, name: str, match: str) -> None:
    tensors = lora(thin_edit(base, VALUE), *SPELLINGS["kohya"], base.shapes)
    with pytest.raises(EraserFileError, match=match) as caught:
        _read(path, base, {**tensors, name: torch.zeros(1, 1)})
    assert str(path) in str(caught.value)


def test_files_of_no_layout_are_refused(base: Base, path: Path) -> None:
    for tensors in ({"weight": torch.zeros(2)}, {"clip_l": torch.zeros(4, 768)}, {}):
        with pytest.raises(EraserFileError, match="no known layout"):
            _read(path, base, tensors)
    assert set(layouts()) > set(writable_layouts())


@pytest.mark.parametrize(
    ("up", "down"), [((32, 0), (0, 768)), ((32, 2, 3), (2, 768)), ((31, 2), (2, 768)), ((32, 2), (2, 7))]
)
def test_factors_that_do_not_fit_are_refused(
    base: Base, path: Path, up: tuple[int, ...], down: tuple[int, ...]
) -> None:
    name = f"lora_unet_{_flat(VALUE)}"
    with pytest.raises(EraserFileError, match="shape"):
        _read(path, base, {f"{name}.lora_up.weight": torch.ones(up), f"{name}.lora_down.weight": torch.ones(down)})


@pytest.mark.parametrize("name", [VALUE[1], "text_model.final_layer_norm.weight"])
def test_other_shapes_are_refused(base: Base, path: Path, name: str) -> None:
    with pytest.raises(EraserFileError, match="shape"):
        _read(path, base, {name: torch.zeros(3, 5)})


def test_a_layer_that_is_named_twice_is_refused(base: Base, path: Path) -> None:
    factors = thin_edit(base, VALUE)
    twice = lora(factors, *SPELLINGS["kohya"], base.shapes) | lora(
        factors, *SPELLINGS["kohya, original names"], base.shapes
    )
    with pytest.raises(EraserFileError, match="twice"):
        _read(path, base, twice)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(base: Base, path: Path, value: float) -> None:
    tensors = lora(thin_edit(base, VALUE), *SPELLINGS["kohya"], base.shapes, 1.0)
    for name, tensor in tensors.items():
        broken = tensor.clone().flatten()
        broken[-1] = value
        with pytest.raises(EraserFileError, match=f"'{name}'.* not finite"):
            _read(path, base, {**tensors, name: broken.reshape(tensor.shape)})


def test_pickles_are_refused_and_converted_apart(base: Base, tmp_path: Path) -> None:
    from lethe.erasers.commands import main

    source = tmp_path / "eraser_weights.pt"
    nested = {f"{ATTENTION}": {k.removeprefix(f"{ATTENTION}."): v for k, v in receler(base).items() if ATTENTION in k}}
    for new in (True, False):
        torch.save(nested, source, _use_new_zipfile_serialization=new)
        with pytest.raises(EraserFileError, match=r"pickle.*python -m lethe convert"):
            import_eraser(source, base)
    assert main(["convert", str(source)]) == 0
    assert len(import_eraser(source.with_suffix(".safetensors"), base).modules) == 1
    assert main(["convert", str(source)]) == 1


def test_a_pickle_that_runs_code_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lethe.erasers.commands import main

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (tmp_path / "ran").touch, ()

    source = tmp_path / "bomb.pt"
    torch.save({"weight": Bomb()}, source)
    assert main(["convert", str(source)]) == 1
    assert "cannot be read as weights alone" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bomb.pt"]


def test_broken_concepts_in_a_file_are_refused(base: Base, path: Path) -> None:
    tensors = lora(thin_edit(base, VALUE), *SPELLINGS["kohya"], base.shapes)
    for broken in ("{", "3", '[""]', "[1]", "[" * 100_000):
        with pytest.raises(EraserFileError, match="'concepts'"):
            _read(path, base, tensors, {"concepts": broken})
    assert _read(path, base, tensors, {"concepts": json.dumps(["bäll"])}).recipe.names == ("bäll",)


def test_layouts_that_are_only_read_are_no_export(base: Base) -> None:
    with pytest.raises(SettingError, match="cannot be written"):
        export_eraser(Eraser(RECIPE, adapters={VALUE[1]: _thin(base, VALUE[1])}), base, "checkpoint")
    with pytest.raises(LetheError, match="no layout"):
        export_eraser(Eraser(RECIPE, adapters={VALUE[1]: _thin(base, VALUE[1])}), base, "other")
