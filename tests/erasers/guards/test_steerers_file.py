"""Files of trained steerers: written once, read instead of trained, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import EraserFileError, SettingError
from lethe.erasers.guards import steerers
from lethe.erasers.guards.steerers import GUARD, Steered
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_tower import TOKENS, ToyModel

BALL = (
    ConceptList().with_concept(Concept("ball", "box", ("orb",))).with_preserved(("tree lamp", "old house", "red cat"))
)
Parts = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel()


def part(model: ToyModel, file: Path | str, **given: float | str) -> Steered:
    settings = {"steps": 5, "k": 4, "file": str(file), **given}
    found = GUARD.plan(model.task(BALL), GUARD.spec.settings(settings)).text
    assert isinstance(found, Steered)
    return found


def by_hand() -> Parts:
    """An autoencoder of features of width 16 with 6 latents, as another program may have trained it."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"encoder": (6, 16), "bias": (6,), "decoder": (16, 6), "centre": (16,)}
    parts = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**parts, "scale": torch.tensor(1.0), "k": torch.tensor(2)}


def test_it_is_trained_once(model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "ball.safetensors"
    trained = part(model, path, depth=0.4)
    assert torch.equal(trained.vector, part(model, "", depth=0.4).vector) and bool(trained.vector.any())
    written = path.read_bytes()

    def never(*_args: object, **_given: object) -> None:
        raise AssertionError("It was trained again.")

    monkeypatch.setattr(steerers, "fit_sparse_code", never)
    read = part(model, path, depth=0.9, k=1, expansion=2)
    assert torch.equal(read.vector, trained.vector) and read.layer is trained.layer
    assert path.read_bytes() == written and [own.name for own in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("latents", "most"), [("all", 6), ("kept", 2)])
def test_one_of_another_program_steers_by_the_papers_formula(
    model: ToyModel, tmp_path: Path, latents: str, most: int
) -> None:
    parts, path = by_hand(), tmp_path / "own.safetensors"
    save_file(parts, path)
    own, seen = part(model, path, strength=0.7, depth=0.0, latents=latents), list[Tensor]()
    handle = own.layer.register_forward_hook(lambda _module, _args, out: seen.append(out[0]))
    model.run(["ball, orb"])
    handle.remove()
    w_e, b_lat, w_d, b_pre = (parts[name].double() for name in ("encoder", "bias", "decoder", "centre"))
    phrase = seen[0].reshape(-1, 16).double()
    for place in range(TOKENS):
        a = torch.stack([(w_e[m] * (phrase[place] - b_pre)).sum() + b_lat[m] for m in range(6)]).clamp(min=0)
        woken = a.argsort(descending=True)[:most].tolist()
        expected = -0.7 * sum(a[m] * w_d[:, m] for m in woken) * (place > 0)
        assert torch.allclose(own.vector[place].double(), expected, atol=1e-4)


FOREIGN: dict[str, Callable[[Parts], Parts]] = {
    "OpenAI": lambda p: {
        "encoder.weight": p["encoder"],
        "latent_bias": p["bias"],
        "decoder.weight": p["decoder"],
        "pre_bias": p["centre"],
        "stats_last_nonzero": torch.zeros(6, dtype=torch.long),
    },
    "sparsify": lambda p: {
        "encoder.weight": p["encoder"],
        "encoder.bias": p["bias"],
        "W_dec": p["decoder"].T.contiguous(),
        "b_dec": p["centre"],
    },
    "SAELens": lambda p: {
        "W_enc": p["encoder"].T.contiguous(),
        "b_enc": p["bias"],
        "W_dec": p["decoder"].T.contiguous(),
        "b_dec": p["centre"],
    },
}


@pytest.mark.parametrize("program", FOREIGN)
def test_other_programs_names_are_the_same_autoencoder(model: ToyModel, tmp_path: Path, program: str) -> None:
    own, theirs = tmp_path / "own.safetensors", tmp_path / "theirs.safetensors"
    save_file(by_hand(), own)
    save_file(FOREIGN[program](by_hand()), theirs)
    for latents in ("all", "kept"):
        found, wanted = (part(model, path, latents=latents, k=2, depth=0.0) for path in (theirs, own))
        assert torch.equal(found.vector, wanted.vector) and bool(found.vector.any())
    more = part(model, theirs, latents="kept", k=5, depth=0.0)
    assert not torch.equal(more.vector, part(model, own, latents="kept", k=5, depth=0.0).vector)


@pytest.mark.parametrize("program", FOREIGN)
def test_other_programs_files_that_do_not_fit_are_refused(model: ToyModel, tmp_path: Path, program: str) -> None:
    path = tmp_path / "theirs.safetensors"
    parts = FOREIGN[program](by_hand())
    save_file({**parts, "threshold": torch.ones(6)}, path)
    with pytest.raises(EraserFileError, match=r"theirs\.safetensors.*is missing"):
        part(model, path)
    save_file({name: x[..., :5].contiguous() for name, x in parts.items()}, path)
    with pytest.raises(EraserFileError, match=r"theirs\.safetensors.*has shape"):
        part(model, path)


def test_the_layer_is_the_files_where_it_tells_it(model: ToyModel, tmp_path: Path) -> None:
    layers = [model.text.get_submodule(name) for name in steerers.layers_of(model.text)]
    save_file(by_hand(), tmp_path / "any.safetensors")
    save_file(by_hand(), tmp_path / "first.safetensors", metadata={"layer": "1"})
    assert part(model, tmp_path / "any.safetensors", depth=0.0).layer is layers[0]
    assert part(model, tmp_path / "first.safetensors", depth=0.0).layer is layers[1]


def _changed(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Parts], Parts]:
    return lambda parts: {**parts, name: make(parts[name]).contiguous()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_changed("centre", lambda x: x[:8]), "'centre' has shape .8., and .16. is needed for features of width 16"),
        (_changed("encoder", lambda x: x.T), "'encoder' has shape .16, 6."),
        (_changed("bias", lambda x: x[:5]), "'encoder' has shape .6, 16., and .5, 16."),
        (_changed("scale", lambda x: x.repeat(2)), "'scale' has shape"),
        (_changed("scale", lambda x: 0 * x), "'scale' is 0"),
        (_changed("k", lambda x: -x), "'k' is -2"),
        (_changed("decoder", lambda x: x * torch.nan), "'decoder' holds values that are not finite"),
        (_changed("decoder", lambda x: x.long()), "'decoder' holds numbers of type"),
        (lambda parts: {n: x for n, x in parts.items() if n != "centre"}, "'centre' is missing"),
        (lambda parts: {**parts, "more": torch.ones(1)}, "'more' is not known"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    model: ToyModel, tmp_path: Path, change: Callable[[Parts], Parts], problem: str
) -> None:
    path = tmp_path / "broken.safetensors"
    save_file(change(by_hand()), path)
    with pytest.raises(EraserFileError, match=f"broken.safetensors.*{problem}"):
        part(model, path)


@pytest.mark.parametrize("layer", ["3", "-1", "one", "9" * 99, ""])
def test_a_layer_that_is_not_there_is_refused(model: ToyModel, tmp_path: Path, layer: str) -> None:
    save_file(by_hand(), tmp_path / "far.safetensors", metadata={"layer": layer})
    with pytest.raises(EraserFileError, match="there are 3, from 0 on"):
        part(model, tmp_path / "far.safetensors")


def test_files_that_cannot_be_read_or_written_are_refused(model: ToyModel, tmp_path: Path) -> None:
    whole, cut, pickled = (tmp_path / f"{name}.safetensors" for name in ("whole", "cut", "pickled"))
    part(model, whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    torch.save(load_file(whole), pickled)
    with pytest.raises(EraserFileError, match="cut short"):
        part(model, cut)
    with pytest.raises(EraserFileError, match="pickle"):
        part(model, pickled)
    with pytest.raises(EraserFileError, match="could not be written"):
        part(model, whole / "below.safetensors")
    with pytest.raises(SettingError, match="has to be text"):
        GUARD.spec.settings({"file": 3})
