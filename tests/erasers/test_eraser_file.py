"""Eraser files: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lethe.erasers.errors import EraserFileError, FamilyError, NumericsError
from lethe.erasers.gates.contribution import Contribution
from lethe.erasers.gates.transport import Transport
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator, Eraser, Member, Recipe, WeightEdit
from lethe.erasers.store import atomic
from lethe.erasers.store.eraser_file import load_eraser, save_eraser
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

RECIPE = Recipe("uce", {"lam": 0.1}, ({"text": "bäll", "replacement": ""},), ("box",), "demo", "abc", 3, {"torch": "2"})
LOW_RANK = ContextOperator(down=torch.randn(2, 5), up=torch.randn(5, 2), bias=torch.randn(5))
DENSE = ContextOperator(dense=torch.randn(7, 7))
EDITS = {
    "down.0.to_v.weight": WeightEdit(down=torch.randn(2, 5), up=torch.randn(3, 2)),
    "down.0.ff.weight": WeightEdit(indices=torch.tensor([0, 14]), values=torch.randn(2)),
    "mid.weight": WeightEdit(dense=torch.randn(3, 5)),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "sub" / "eraser.safetensors"
    context = {"clip_l": LOW_RANK, "clip_l+clip_g": DENSE}
    save_eraser(Eraser(RECIPE, context, EDITS, {f"clip_l.{name}": edit for name, edit in EDITS.items()}), path)
    return path


def _rewrite(path: Path, header: dict[str, str | None] | None = None, **tensors: torch.Tensor) -> Path:
    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
    for name, value in (header or {}).items():
        if value is None:
            kept.pop(name)
        else:
            kept[name] = value
    save_file({**load_file(path), **tensors}, path, metadata=kept)
    return path


def _with_recipe(path: Path, **changes: object) -> Path:
    with safe_open(path, framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    return _rewrite(path, {"recipe": json.dumps({**recipe, **changes})})


def test_what_is_written_comes_back(saved: Path) -> None:
    eraser = load_eraser(saved)
    assert eraser.recipe == RECIPE
    for name, tensor in {**LOW_RANK.tensors()}.items():
        assert torch.equal(eraser.context["clip_l"].tensors()[name], tensor)
    assert torch.equal(eraser.context["clip_l+clip_g"].tensors()["dense"], DENSE.tensors()["dense"])
    for name, edit in EDITS.items():
        for found in (eraser.adapters[name], eraser.text_encoder[f"clip_l.{name}"]):
            assert torch.equal(found.delta((3, 5)), edit.delta((3, 5)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_file_that_is_cut_short_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EraserFileError, match="cut short"):
        load_eraser(saved)


def test_other_files_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EraserFileError, match="cannot be read"):
        load_eraser(tmp_path / "missing.safetensors")
    other = tmp_path / "lora.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(EraserFileError, match="not an eraser"):
        load_eraser(other)
    other.write_bytes(b"PK\x03\x04 this is a zip file with a pickle in it")
    with pytest.raises(EraserFileError, match="cannot be read"):
        load_eraser(other)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"format_version": "2"}, "version '2'"),
        ({"format_version": None}, "version None"),
        ({"format": "else"}, "not an eraser"),
        ({"recipe": None}, "'recipe'"),
        ({"recipe": "{"}, "'recipe'"),
        ({"recipe": "[]"}, "'recipe'"),
        ({"recipe": "{}"}, "'recipe.method'"),
    ],
)
def test_a_broken_header_is_refused(saved: Path, header: dict[str, str | None], match: str) -> None:
    with pytest.raises(EraserFileError, match=match):
        load_eraser(_rewrite(saved, header))


@pytest.mark.parametrize(
    "change", [{"family": 3}, {"concepts": [1]}, {"concepts": [{}]}, {"preserve": [1]}, {"seed": "x"}]
)
def test_a_field_of_the_wrong_type_is_named(saved: Path, change: dict[str, object]) -> None:
    with pytest.raises(EraserFileError, match=f"recipe.{next(iter(change))}"):
        load_eraser(_with_recipe(saved, **change))


def test_tensors_that_do_not_belong_are_refused(saved: Path) -> None:
    for name in ("gates.x.up", "context.clip_l.values", "adapters.x.bias", "adapters.up"):
        with pytest.raises(EraserFileError, match=f"unknown tensor '{name}'"):
            load_eraser(_rewrite(saved, **{name: torch.zeros(1)}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context.clip_l.down", torch.full((2, 5), float("nan"))),
        ("context.clip_l.up", torch.zeros(4, 2)),
        ("context.clip_l.bias", torch.zeros(4)),
        ("context.clip_l.dense", torch.zeros(5, 5)),
        ("context.clip_l.down", torch.zeros(2, 5, dtype=torch.int32)),
        ("adapters.down.0.to_v.weight.down", torch.zeros(3, 5)),
        ("adapters.down.0.ff.weight.indices", torch.tensor([-1, 2])),
        ("adapters.down.0.ff.weight.values", torch.full((2,), float("inf"))),
        ("text_encoder.clip_l.mid.weight.up", torch.zeros(3, 5)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved: Path, name: str, value: torch.Tensor) -> None:
    with pytest.raises(EraserFileError):
        load_eraser(_rewrite(saved, **{name: value}))


def test_a_failed_write_leaves_the_old_file_and_no_rest(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(EraserFileError, match="No space left"):
        save_eraser(Eraser(RECIPE, {"clip_l": DENSE}), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_files_are_synced_as_every_system_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to sync what was opened for reading alone."""
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: os.write(descriptor, b""))
    atomic.write_bytes(tmp_path / "written", b"x")
    assert (tmp_path / "written").read_bytes() == b"x"


def test_names_that_windows_hides_or_refuses_are_refused_everywhere(saved: Path) -> None:
    with pytest.raises(EraserFileError, match="on every system"):
        save_eraser(load_eraser(saved), saved.with_name("ball: gone.safetensors"))
    assert list(saved.parent.iterdir()) == [saved]


def test_an_eraser_outlives_its_file(saved: Path) -> None:
    """A file that stays mapped cannot be replaced on Windows."""
    before, found = load(saved.read_bytes()), load_eraser(saved)
    with saved.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\1" * 64)
    save_eraser(found, saved)
    after = load(saved.read_bytes())
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_an_eraser_for_another_family_is_refused() -> None:
    known = families()
    Eraser(RECIPE, {"clip_l": ContextOperator(dense=torch.zeros(192, 192))}).check_family(known["demo"])
    for width, stream, family in ((768, "clip_l", "sd1"), (192, "clip_h", "demo"), (768, "clip_l", "demo")):
        eraser = Eraser(RECIPE, {stream: ContextOperator(dense=torch.zeros(width, width))})
        with pytest.raises(FamilyError, match="made for family 'demo'"):
            eraser.check_family(known[family])


def test_an_eraser_that_changes_nothing_is_refused() -> None:
    with pytest.raises(NumericsError, match="changes nothing"):
        Eraser(RECIPE)


def test_an_edit_that_does_not_fit_its_weight_is_refused() -> None:
    for edit in EDITS.values():
        with pytest.raises(FamilyError, match="shape"):
            edit.delta((2, 5))


def test_an_operator_needs_tensors_that_fit() -> None:
    for bad in (
        {},
        {"down": torch.zeros(2, 5)},
        {"dense": torch.zeros(2, 3)},
        {"down": torch.zeros(2), "up": torch.zeros(2)},
    ):
        with pytest.raises(NumericsError):
            ContextOperator(**bad)


GATED = Eraser(
    RECIPE,
    members=(
        Member(
            Contribution(torch.randn(2, 5), torch.tensor([0, 1]), torch.tensor([1]), 0.25),
            Eraser(RECIPE, adapters=EDITS),
        ),
        Member(
            Transport(torch.randn(1, 3, 5), torch.tensor([0.5]), torch.tensor([[7, -1]]), 0.5),
            Eraser(RECIPE, {"a": LOW_RANK}),
        ),
    ),
)


def _members(path: Path) -> list[dict]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["members"])


def test_figures_come_back_and_broken_ones_are_refused(saved: Path) -> None:
    eraser = replace(load_eraser(saved), figures={"kept": (0.95, 0.9, 0.98), "p4d, ASR": (0.5, math.nan, math.nan)})
    save_eraser(eraser, saved)
    found = load_eraser(saved).figures
    assert found["kept"] == (0.95, 0.9, 0.98)
    assert found["p4d, ASR"][0] == 0.5
    assert math.isnan(found["p4d, ASR"][1])
    for broken in ("[]", '{"a": 1}', '{"a": [1, 2]}', '{"a": [1, 2, "3"]}', '{"a": [true, 1, 1]}', "{"):
        with pytest.raises(EraserFileError, match="figures"):
            load_eraser(_rewrite(saved, {"figures": broken}))


def test_erasers_behind_gates_come_back(tmp_path: Path) -> None:
    save_eraser(GATED, tmp_path / "gated.safetensors")
    found = load_eraser(tmp_path / "gated.safetensors")
    assert [member.gate.kind for member in found.members] == ["contribution", "transport"]
    assert [member.gate.threshold for member in found.members] == [0.25, 0.5]
    assert [member.eraser.recipe for member in found.members] == [RECIPE, RECIPE]
    assert found.tensors().keys() == GATED.tensors().keys()
    assert all(torch.equal(tensor, GATED.tensors()[name]) for name, tensor in found.tensors().items())


@pytest.mark.parametrize(
    "gate",
    [
        {},
        None,
        {"kind": "contribution"},
        {"kind": 3, "threshold": 0.5},
        {"kind": "x", "threshold": 0.5},
        {"kind": "transport", "threshold": 7},
    ],
)
def test_a_gate_that_is_not_known_is_refused(tmp_path: Path, gate: object) -> None:
    path = tmp_path / "gated.safetensors"
    save_eraser(GATED, path)
    first, second = _members(path)
    with pytest.raises(EraserFileError):
        load_eraser(_rewrite(path, {"members": json.dumps([{**first, "gate": gate}, second])}))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("members.0.gate.keys", torch.full((2, 5), torch.nan)),
        ("members.0.gate.keys", torch.zeros(2, 5, dtype=torch.int64)),
        ("members.0.gate.owners", torch.zeros(2)),
        ("members.0.gate.owners", torch.tensor([0, 2])),
        ("members.0.gate.start", torch.tensor([-1])),
        ("members.1.gate.ids", torch.tensor([[-1, -1]])),
        ("members.0.text_encoder.clip_l.x.dense", torch.zeros(2, 2)),
        ("members.2.gate.keys", torch.zeros(2, 5)),
    ],
)
def test_a_gate_whose_tensors_do_not_fit_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    path = tmp_path / "gated.safetensors"
    save_eraser(GATED, path)
    with pytest.raises(EraserFileError):
        load_eraser(_rewrite(path, **{name: tensor}))


def test_whoever_may_read_the_folders_other_files_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"x")
    atomic.write_bytes(tmp_path / "written", b"x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usual", "written"]
