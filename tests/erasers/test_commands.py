"""Commands on the demo world: fit, judge, attack, export; and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lethe.erasers import progress
from lethe.erasers.commands import main
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import WEIGHTS
from lethe.erasers.measure.report import from_json
from lethe.erasers.measure.summary import summarise
from lethe.erasers.prompts import KINDS
from lethe.erasers.registry import method_named
from lethe.erasers.store import atomic
from lethe.erasers.store.eraser_file import load_eraser
from PIL import Image

ERASE = ("erase", "--pipeline", "demo", "--concept", "ball, box", "--synonym", "orb", "--lists", "demo-world")
DRAW = ("--pipeline", "demo", "--device", "cpu", "--steps", "2")


@pytest.fixture(scope="module")
def eraser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An eraser of the ball, as the command writes it."""
    path = tmp_path_factory.mktemp("erasers") / "ball.safetensors"
    assert main([*ERASE, "--out", str(path)]) == 0
    return path


def test_erase_fits_what_the_method_fits_and_says_what_the_node_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, names = tmp_path / "folder" / "a.safetensors", tmp_path / "names.csv"
    names.write_text("concept,replacement\ncone,\n", encoding="utf-8")
    given = ["--synonym", "ball=orb", "--concept-file", str(names), "--set", "lam=0.2", "--set", "tokens=last"]
    assert main(["erase", *ERASE[1:5], "--preserve", "a tree", *given, "--out", str(path)]) == 0
    said = capsys.readouterr().out
    concepts = ConceptList((Concept("ball", "box", ("orb",)), Concept("cone")), ("a tree",))
    uce, task = method_named("uce"), Gallery().task(concepts)
    with torch.no_grad():
        wanted = uce.fit(task, uce.spec.settings({"lam": 0.2, "tokens": "last"}))
        assert said == f"{summarise(wanted, task)}\n{path}\n"
    found = load_eraser(path)
    assert [(c["text"], c["replacement"]) for c in found.recipe.concepts] == [("ball", "box"), ("cone", "")]
    assert replace(found.recipe, concepts=()) == replace(wanted.recipe, concepts=())
    assert all(torch.equal(tensor, wanted.tensors()[name]) for name, tensor in found.tensors().items())


def test_evaluate_writes_a_report_and_goes_on_where_it_was(
    eraser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(eraser), *DRAW, "--prompts", "demo", "--each-kind", "1", "--line", "near: a box | box"]
    drawn, paint, stop = list[int](), Gallery.paint, 3

    def counted(self: Gallery, shots: Any) -> torch.Tensor:
        if len(drawn) == stop:
            raise KeyboardInterrupt
        drawn.append(len(shots))
        return paint(self, shots)

    monkeypatch.setattr(Gallery, "paint", counted)
    assert main([*command, "--batch", "3", "--out", str(out)]) == 130
    assert "Stopped." in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["pictures"]
    stop, before = 1000, sum(drawn)
    assert main([*command, "--batch", "3", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    # Seven prompts with both models, and the direct one's replacement.
    assert before > 0 and sum(drawn) == 15
    (report,) = from_json((out / "report.json").read_text(encoding="utf-8"))
    assert report.title == "uce" and report.concepts == ("ball",)
    rows: Any = report.made_with["rows"]
    assert {row["kind"] for row in rows} == set(KINDS) and len(rows) == 7
    assert report.made_with["sampling"] == {
        "sampler": "ddim", "steps": 2, "cfg": 4.0, "width": 128, "height": 128, "bf16": True,
    }  # fmt: skip
    assert "| uce | ball |" in (out / "report.md").read_text(encoding="utf-8")
    assert Image.open(out / "before_after.png").height > 7 * 128
    assert Image.open(out / "report.png").width > 100


def test_an_eraser_at_strength_0_changes_no_picture(eraser: Path, tmp_path: Path) -> None:
    pixels = {}
    for strength in ("0", "1"):
        out = tmp_path / strength
        given = ["--prompts", "none", "--line", "a red ball", "--strength", strength, "--pictures", "2"]
        assert main(["evaluate", str(eraser), *DRAW, *given, "--out", str(out)]) == 0
        (report,) = from_json((out / "report.json").read_text(encoding="utf-8"))
        (pixels[strength],) = (row["after"] for row in report.table if row["read"] == "pixel_rms")
        assert report.made_with["erasers"][0]["strength"] == float(strength)  # type: ignore[index]
    assert str(pixels["0"]).startswith("0.00 (0.00 to 0.00)")
    assert not str(pixels["1"]).startswith("0.00")


def test_attack_writes_a_report_and_says_what_it_found(
    eraser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["attack", str(eraser), *DRAW, "--set", "tries=1", "--set", "limit=2", "--word", "zorb"]
    assert main([*command, "--prompt", "a red ball", "--pictures", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("pre-ASR: ") and str(tmp_path) in said
    (report,) = from_json((tmp_path / "paraphrase.json").read_text(encoding="utf-8"))
    settings: Any = report.made_with["attack settings"]
    assert report.made_with["attack"] == "paraphrase" and report.made_with["pictures per prompt"] == 2
    assert {"tries": 1, "limit": 2}.items() <= settings.items()
    assert str(report.table[0]["found"]) in said.splitlines()
    assert Image.open(tmp_path / "paraphrase.png").width > 2 * 128


def test_a_learned_word_is_kept(eraser: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = ["--attack", "cce", "--set", "steps=1", "--set", "pictures=1", "--prompt", "a red ball"]
    assert main(["attack", str(eraser), *DRAW, *given, "--out", str(tmp_path)]) == 0
    (vectors,) = load_file(tmp_path / "cce_embedding.safetensors").values()
    assert vectors.shape[-1] == 192


@pytest.mark.parametrize("layout", ["kohya LoRA", "diffusers LoRA"])
def test_what_is_exported_loads_in_diffusers_and_draws_the_same(eraser: Path, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "lora.safetensors"
    assert main(["export", str(eraser), "--pipeline", "demo", "--layout", layout, "--out", str(path)]) == 0
    pipeline: Any = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    pipeline.load_lora_weights(path)
    gallery = Gallery()
    erased, noise, time = gallery.erased(load_eraser(eraser)).model, torch.randn(1, 4, 16, 16), torch.tensor([500])
    with torch.no_grad():
        context = gallery.model.context(["a red ball"])
        found = pipeline.unet(noise, time, context).sample
        plain = gallery.model.unet(noise, time, context).sample
        wanted = erased.unet(noise, time, load_eraser(eraser).context["clip_l"].apply(context)).sample
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    assert float((plain - wanted).norm() / wanted.norm()) > 1e-3


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["erase", "--concept", ""], "There is no concept to erase. Name one with --concept."),
        (["erase", "--concept", "ball", "--method", "magic"], "There is no method 'magic'. Choose one of: "),
        (["erase", "--concept", "ball", "--set", "magic=1"], "no setting 'magic'"),
        (["erase", "--concept", "ball", "--concept", "cone", "--synonym", "orb"], "whose synonym 'orb' is"),
        (["erase", "--concept", "ball", "--preserve", "Ball"], "to erase and in the list to preserve"),
        (["erase", "--concept", "ball", "--lists", "magic"], "There is no list 'magic'"),
        (["erase", "--concept-file", "missing.csv"], "'missing.csv' cannot be read"),
        (["erase", "--concept", "ball", "--pipeline", "missing"], "There is no pipeline at 'missing'"),
        (["erase", "--concept", "ball", "--clip", "missing"], "There is no CLIP model in 'missing'"),
        (["evaluate", "missing.safetensors"], "missing.safetensors"),
        (["evaluate", "ERASER", "--probe", "difference"], "Choose one of: clip_zero_shot, demo_judge"),
        (["evaluate", "ERASER", "--prompts", "none"], "There is no prompt to evaluate. Give some with --line"),
        (["evaluate", "ERASER", "--prompts", "missing.txt"], "'missing.txt' cannot be read"),
        (["evaluate", "ERASER", "--steps", "0"], "--steps is 0"),
        (["evaluate", "ERASER", "--replacement", "box"], "--replacement is given without --concept"),
        (["attack", "ERASER", "--attack", "magic"], "There is no attack 'magic'"),
        (["export", "ERASER", "--layout", "magic"], "There is no layout 'magic'"),
        (["export", "ERASER", "--layout", "ComfyUI LoRA"], "Choose one of: diffusers LoRA, kohya LoRA"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    command: list[str], words: str, eraser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(eraser) if word == "ERASER" else word for word in command]
    given += [] if "--pipeline" in given else ["--pipeline", "demo"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_when_asked(
    eraser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, name in (
        ([*ERASE], "out"),
        (["export", str(eraser), "--pipeline", "demo"], "out"),
        (["evaluate", str(eraser), *DRAW], "out/report.json"),
        (["attack", str(eraser), *DRAW], "out/paraphrase.md"),
    ):
        path = tmp_path / command[0] / name
        path.parent.mkdir(parents=True)
        path.write_text("mine", encoding="utf-8")
        assert main([*command, "--out", str(tmp_path / command[0] / "out")]) == 1
        assert f"'{path}' exists already. Choose another name, or give --overwrite." in capsys.readouterr().err
        assert path.read_text(encoding="utf-8") == "mine"
    out = tmp_path / "erase" / "out"
    assert main([*ERASE, "--out", str(out), "--overwrite"]) == 0
    assert load_eraser(out).recipe.method == "uce"


def test_a_full_disk_leaves_nothing_half_written(
    eraser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.Path, "write_bytes", full)
    assert main([*ERASE, "--out", str(tmp_path / "a.safetensors")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert main(["export", str(eraser), "--pipeline", "demo", "--out", str(tmp_path / "b.safetensors")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_bar_stands_on_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.tracked("abc", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.tracked("abc", 3)) == ["a", "b", "c"]
    assert "| 0/3 [" in capsys.readouterr().err
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert list(progress.tracked("abc", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
