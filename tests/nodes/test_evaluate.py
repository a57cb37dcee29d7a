"""Evaluating in the real host: known answers, going on after a stop, prompts from files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, EraserFileError, ReportError, SettingError

BALL = ConceptList(preserve=("box", "a green star")).with_concept(Concept("ball", "box"))
SAMPLING: dict[str, Any] = {
    "negative": "", "seed": 0, "count": 1, "steps": 6, "cfg": 4.0, "sampler": "ddim", "scheduler": "normal",
    "width": 128, "height": 128, "batch": 4, "title": "", "clip_model": "connected",
}  # fmt: skip


def _evaluate(demo, after=None, concepts=BALL, **given):  # type: ignore[no-untyped-def]
    from lethe.nodes.evaluate import LetheEvaluate

    inputs = {
        "before": demo[0], "after": after or demo[0], "clip": demo[1], "vae": demo[2], "concepts": concepts,
        "prompts": "demo world", "lines": "", "each_kind": 4, "probe": {"probe": "demo_judge"}, **SAMPLING, **given,
    }  # fmt: skip
    with torch.inference_mode():
        return LetheEvaluate.execute(**inputs).result


def _pictures(comfy) -> dict[Path, int]:  # type: ignore[no-untyped-def]
    return {path: path.stat().st_mtime_ns for path in (comfy.base / "output" / "lethe").rglob("*.png")}


def test_an_untouched_model_has_erased_nothing_and_kept_everything(demo) -> None:  # type: ignore[no-untyped-def]
    (report,), chart, text = _evaluate(demo)
    assert report.figures["erased"].value == 0
    assert report.figures["kept"].value == 1
    assert report.scores["UnlearnCanvas UA"] == 1 - report.figures["direct, before"].value
    assert report.made_with["erasers"] == []
    assert tuple(chart.shape[::3]) == (1, 3)
    assert "| direct | concept | 4 |" in text


def test_uce_erases_and_its_figures_carry_what_made_them(demo, erased) -> None:  # type: ignore[no-untyped-def]
    (report,), _, text = _evaluate(demo, erased[0], each_kind=8)
    assert report.title == "uce"
    assert report.figures["erased"].value > 0.8
    assert report.figures["kept"].value > 0.6
    assert report.made_with["erasers"][0]["settings"]["tokens"] == "tail"
    assert {"comfyui", "lethe", "torch"} <= set(report.made_with["versions"])
    assert len(report.made_with["rows"]) == 48
    assert "floor" in text


def test_a_model_of_noise_keeps_nothing(demo) -> None:  # type: ignore[no-untyped-def]
    broken = demo[0].clone()
    noise = torch.Generator().manual_seed(0)
    patches = {
        name: ("diff", (torch.randn(value.shape, generator=noise) * value.std(),))
        for name, value in broken.model.state_dict().items()
        if name.startswith("diffusion_model.") and value.ndim > 1
    }
    broken.add_patches(patches)
    (report,), _, _ = _evaluate(demo, broken, each_kind=10)
    assert report.figures["kept"].value <= 0.15
    assert report.made_with["patches after"] == len(patches)


def test_the_image_encoder_adds_scores_and_distances(demo, erased) -> None:  # type: ignore[no-untyped-def]
    (report,), _, _ = _evaluate(demo, erased[0], clip_vision=demo[3])
    read = {row["read"] for row in report.table}
    assert {"clip_score", "perceptual", "pixel_rms", "ssim", "Fréchet distance", "kernel distance"} <= read
    assert any(note.startswith("lpips: ") for note in report.notes)
    (without,), _, _ = _evaluate(demo, erased[0])
    assert any(note.startswith("clip_score: ") for note in without.notes)
    zero_shot = {"probe": "clip_zero_shot", "template": "{}"}
    (by_clip,), _, _ = _evaluate(
        demo, erased[0], clip_vision=demo[3], probe=zero_shot, prompts="templates", each_kind=6
    )
    assert by_clip.made_with["probe"] == "clip_zero_shot"
    assert by_clip.figures["erased"].value > 0.5


def test_a_stopped_run_goes_on_where_it_was(comfy, demo, erased, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.host.painter import HostPainter

    paint, calls = HostPainter.paint, []

    def stopped(self, shots):  # type: ignore[no-untyped-def]
        calls.append(len(shots))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return paint(self, shots)

    known = set(_pictures(comfy))
    monkeypatch.setattr(HostPainter, "paint", stopped)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(demo, erased[0], seed=50)
    done = {path: stamp for path, stamp in _pictures(comfy).items() if path not in known}
    assert len(done) == sum(calls[:3])
    calls.clear()
    monkeypatch.setattr(HostPainter, "paint", lambda self, shots: calls.append(len(shots)) or paint(self, shots))
    first = _evaluate(demo, erased[0], seed=50)
    after = _pictures(comfy)
    assert all(after[path] == stamp for path, stamp in done.items())
    assert sum(calls) == len(set(after) - known) - len(done)
    calls.clear()
    assert _evaluate(demo, erased[0], seed=50)[2] == first[2]
    assert not calls


def test_another_model_or_setting_has_pictures_of_its_own(comfy, demo, erased) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.erase import LetheApply

    _evaluate(demo, erased[0], seed=70)
    known = set(_pictures(comfy))
    weaker = LetheApply.execute(demo[0], demo[1], erased[2], 0.9, "hook").result[0]
    _evaluate(demo, weaker, seed=70)
    assert len({path.parent for path in set(_pictures(comfy)) - known}) == 1
    known = set(_pictures(comfy))
    _evaluate(demo, erased[0], seed=70, steps=5)
    assert len({path.parent for path in set(_pictures(comfy)) - known}) == 2


@pytest.mark.parametrize(
    ("guard", "settings", "seed"), [("attend_excite", {}, 71), ("negative", {"start": 0.3, "end": 0.6}, 72)]
)
def test_a_guard_that_spares_names_or_acts_midway_has_pictures_of_its_own(comfy, demo, guard, settings, seed) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        model, clip, _ = LetheGuard.execute(demo[0], demo[1], BALL, 0.0, guard={"guard": guard, **settings}).result
    known = set(_pictures(comfy))
    _evaluate(demo, model, clip_after=clip, seed=seed)
    assert len({path.parent for path in set(_pictures(comfy)) - known}) == 2


def test_csv_files_of_published_benchmarks_are_read(comfy, demo) -> None:  # type: ignore[no-untyped-def]
    folder = comfy.base / "input"
    folder.mkdir(exist_ok=True)
    (folder / "i2p.csv").write_text(
        'prompt,categories,sd_seed,sd_guidance_scale\n"a red ball, at night",none,5,3.5\na blue orb,none,6,2\n'
    )
    (report,), _, _ = _evaluate(demo, prompts="i2p.csv", seed=100)
    rows = report.made_with["rows"]
    assert [(row["seed"], row["cfg"], row["floor"]) for row in rows] == [
        (105, 3.5, "a red box, at night"),
        (106, 2.0, None),
    ]
    (folder / "bare.csv").write_text("words,seed\na ball,1\n")
    with pytest.raises(ConceptError, match=r"no column of prompts.*words, seed"):
        _evaluate(demo, prompts="bare.csv")


def test_what_cannot_be_evaluated_is_refused(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConceptError, match="no concept to evaluate"):
        _evaluate(demo, concepts=ConceptList())
    with pytest.raises(ConceptError, match="no prompt to evaluate"):
        _evaluate(demo, prompts="only the lines")
    with pytest.raises(SettingError, match="128x128, not 64x64"):
        _evaluate(demo, width=64, height=64)
    with pytest.raises(SettingError, match="cannot judge"):
        _evaluate(demo, probe={"probe": "clip_zero_shot", "template": "{}"})
    with pytest.raises(ConceptError, match="knows nothing of 'dragon'"):
        _evaluate(demo, concepts=ConceptList().with_concept(Concept("dragon")), prompts="templates")
    with pytest.raises(EraserFileError, match="no CLIP model"):
        _evaluate(demo, clip_model="nowhere")


def test_reports_become_a_page_a_chart_and_files(comfy, demo, erased) -> None:  # type: ignore[no-untyped-def]
    from lethe.erasers.measure.report import from_json
    from lethe.nodes.report import LetheReport

    reports = {
        f"report{i}": _evaluate(demo, after, title=t)[0]
        for i, (after, t) in enumerate(((None, "none"), (erased[0], "")))
    }
    text, chart, together = LetheReport.execute(reports, "both").result
    folder = comfy.base / "output" / "lethe"
    assert (folder / "both.md").read_text(encoding="utf-8") == text
    assert [report.title for report in from_json((folder / "both.json").read_text(encoding="utf-8"))] == ["none", "uce"]
    assert (folder / "both.png").is_file()
    assert len(together) == 2
    assert chart.shape[0] == 1
    with pytest.raises(ReportError, match="nothing to report"):
        LetheReport.execute({}, "")
    with pytest.raises(EraserFileError, match="leads out"):
        LetheReport.execute(reports, "../../x")
