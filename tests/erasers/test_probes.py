"""Probes of pictures, on embeddings made by hand, beside torchmetrics, and on the demo world."""

from __future__ import annotations

import importlib.util
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery, Sight
from lethe.erasers.errors import ConceptError, NumericsError, SettingError
from lethe.erasers.probe import View
from lethe.erasers.probes import lpips
from lethe.erasers.prompts import COMPOSITIONAL, DIRECT, FAR, NEAR, PromptRow
from lethe.erasers.registry import probe_named, probes
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

CLIP_PROBES = ("clip_zero_shot", "clip_score", "perceptual")


class TableSight:
    """Texts by table; a picture's embedding is its first row of the red channel."""

    def __init__(self, texts: Mapping[str, tuple[float, ...]]) -> None:
        self.texts, self.read = texts, list[str]()

    def embed_images(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3]

    def embed_latents(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def embed_text(self, prompts: list[str]) -> Tensor:
        self.read += prompts
        return torch.tensor([self.texts[prompt] for prompt in prompts])


def _pictures(*rows: tuple[float, float, float]) -> Tensor:
    found = torch.zeros(len(rows), 3, 32, 32)
    found[:, 0, 0, :3] = torch.tensor(rows)
    return found


def _view(rows: list[PromptRow], pictures: Tensor, concepts: ConceptList, sight: object, **subjects: str) -> View:
    split = {kind: tuple(names.split("|")) for kind, names in subjects.items()}
    return View(tuple(rows), pictures, pictures, concepts, split, sight)  # type: ignore[arg-type]


def _look(name: str, view: View, **settings: str) -> Mapping[str, Tensor]:
    probe = probe_named(name)
    assert probe.lacks(view) == ""
    return probe.look(view, probe.spec.settings(settings))


WORDS = {"ball": (1.0, 0.0, 0.0), "orb": (0.8, 0.6, 0.0), "box": (0.0, 1.0, 0.0), "star": (0.0, 0.0, 1.0)}
BALL = ConceptList((Concept("ball", "box", ("orb",)),))


def test_only_recognisers_say_so() -> None:
    assert {name for name, probe in probes().items() if probe.recognises} == {"demo_judge", "clip_zero_shot"}


def test_a_concept_is_seen_when_one_of_its_names_is_nearest() -> None:
    """The third picture lies between orb and box: cos 0.96 with orb, 0.8 with box."""
    rows = [PromptRow("x", concept="ball")] * 4
    pictures = _pictures((1, 0, 0), (0.1, 1, 0), (0.6, 0.8, 0), (0, 0.1, 1))
    found = _look("clip_zero_shot", _view(rows, pictures, BALL, TableSight(WORDS), near="star"), template="{}")
    assert found["concept"].tolist() == [True, False, True, False]
    assert found["subject"].tolist() == [False] * 4
    assert found["concept"].dtype == found["subject"].dtype == torch.bool
    logits = 100 * torch.tensor([0.6, 0.96, 0.8, 0.0])
    assert float(found["probability"][2]) == pytest.approx(float(logits.softmax(0)[:2].sum()), abs=1e-5)


def test_probability_is_of_all_names_together() -> None:
    """Equally far from all four labels: ball and orb have a half between them."""
    same = dict.fromkeys(("ball", "orb", "box", "star"), (1.0, 1.0, 0.0))
    view = _view([PromptRow("x", concept="ball")], _pictures((1, 0, 0)), BALL, TableSight(same), near="star")
    assert float(_look("clip_zero_shot", view, template="{}")["probability"]) == pytest.approx(0.5)


def test_a_subject_is_told_from_its_kind_and_from_what_is_erased() -> None:
    """The second picture shows the erased ball; the third a star, which is of another kind than the row."""
    rows = [
        PromptRow("x", NEAR, subject="Box"),
        PromptRow("x", NEAR, subject="Box"),
        PromptRow("x", FAR, subject="tree"),
    ]
    words = WORDS | {"Box": WORDS["box"], "tree": (0.0, 0.6, 0.8)}
    view = _view(
        rows, _pictures((0, 1, 0), (1, 0.2, 0), (0, 0, 1)), BALL, TableSight(words), near="Box|star", far="tree"
    )
    found = _look("clip_zero_shot", view, template="{}")
    assert found["subject"].tolist() == [True, False, True]
    assert found["concept"].tolist() == [False] * 3
    assert bool(found["probability"].isnan().all())


def test_labels_are_written_into_the_template() -> None:
    words = {f"a painting in the style of {name}": row for name, row in WORDS.items()}
    sight = TableSight(words)
    view = _view([PromptRow("x", concept="ball")], _pictures((1, 0, 0)), BALL, sight, near="star")
    found = _look("clip_zero_shot", view, template="a painting in the style of {}")
    assert found["concept"].tolist() == [True]
    assert sorted(sight.read) == sorted(words)


def test_each_row_is_asked_for_its_own_concept() -> None:
    concepts = ConceptList((Concept("ball", "box"), Concept("star", "box")))
    rows = [PromptRow("x", concept="ball"), PromptRow("x", concept="star"), PromptRow("x", concept="star")]
    view = _view(rows, _pictures((1, 0, 0), (1, 0, 0.5), (0, 0, 1)), concepts, TableSight(WORDS))
    assert _look("clip_zero_shot", view, template="{}")["concept"].tolist() == [True, True, True]
    view = replace(view, pictures=_pictures((0, 1, 0), (0, 1, 0.5), (0, 1, 0)))
    assert _look("clip_zero_shot", view, template="{}")["concept"].tolist() == [False] * 3


def test_what_stands_in_one_prompt_does_not_compete() -> None:
    """Both, the ball alone, the star alone, and a box beside the star."""
    words = {
        "ball and star": (1.0, 0.0, 1.0),
        "orb and star": (0.9, 0.1, 1.0),
        "box and star": (0.0, 1.0, 1.0),
        "star": (0.0, 0.0, 1.0),
        "star and ball": (1.0, 0.0, 1.0),
        "box and ball": (1.0, 1.0, 0.0),
        "ball": (1.0, 0.0, 0.0),
    }
    rows = [PromptRow("x", COMPOSITIONAL, "ball", "star")] * 4
    pictures = _pictures((0.8, 0, 1), (1, 0, 0.1), (0, 0, 1), (0, 1, 0.9))
    view = _view(rows, pictures, BALL, TableSight(words), near="star", compositional="star|box")
    found = _look("clip_zero_shot", view, template="{}")
    assert found["concept"].tolist() == [True, True, False, False]
    assert found["subject"].tolist() == [True, False, True, False]


def test_a_choice_of_one_is_no_question() -> None:
    concepts = ConceptList((Concept("ball", "", ("orb",)),))
    view = _view([PromptRow("x", concept="ball")], _pictures((1, 0, 0)), concepts, TableSight(WORDS), near="Ball")
    with pytest.raises(ConceptError, match=r"'ball' could be taken for.*replacement"):
        _look("clip_zero_shot", view)
    view = _view(
        [PromptRow("x", NEAR, subject="box")], _pictures((1, 0, 0)), ConceptList(), TableSight(WORDS), near="box"
    )
    with pytest.raises(ConceptError, match=r"'box' could be taken for.*near subjects"):
        _look("clip_zero_shot", view)
    view = _view([PromptRow("x", concept="moon")], _pictures((1, 0, 0)), BALL, TableSight(WORDS))
    with pytest.raises(ConceptError, match="'moon' is not among"):
        _look("clip_zero_shot", view)


def test_rows_that_ask_nothing_see_nothing() -> None:
    found = _look("clip_zero_shot", _view([PromptRow("x", FAR)], _pictures((1, 0, 0)), BALL, TableSight({})))
    assert found["concept"].tolist() == found["subject"].tolist() == [False]
    assert math.isnan(float(found["probability"]))


@pytest.mark.parametrize("name", CLIP_PROBES)
def test_probes_that_need_an_image_encoder_say_so(name: str) -> None:
    view = _view([PromptRow("ball", concept="ball")], _pictures((1, 0, 0)), BALL, None)
    probe = probe_named(name)
    assert "CLIP vision" in probe.lacks(view)
    with pytest.raises(SettingError, match="image encoder"):
        probe.look(view, probe.spec.settings({}))


@pytest.mark.parametrize("name", CLIP_PROBES)
@pytest.mark.parametrize("broken", [(math.nan, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_broken_embeddings_are_refused(name: str, broken: tuple[float, float, float]) -> None:
    words = WORDS | {f"a photo of {word}": row for word, row in WORDS.items()}
    view = _view([PromptRow("ball", concept="ball")], _pictures(broken), BALL, TableSight(words))
    with pytest.raises(NumericsError, match="pictures are not finite, or zero"):
        _look(name, view)
    if name != "perceptual":
        sight = TableSight(words | {"ball": broken, "a photo of ball": broken})
        with pytest.raises(NumericsError, match="texts are not finite, or zero"):
            _look(name, _view([PromptRow("ball", concept="ball")], _pictures((1, 0, 0)), BALL, sight))


def test_clip_score_is_a_hundred_times_the_cosine_below_zero_too() -> None:
    """Lengths do not matter; 70 rows go through in several parts."""
    words = {"up": (0.0, 2.0, 0.0), "down": (0.0, -1.0, 0.0)}
    rows = [PromptRow("up"), PromptRow("down")] * 35
    found = _look("clip_score", _view(rows, _pictures((3, 4, 0)).repeat(70, 1, 1, 1), BALL, TableSight(words)))
    assert found["clip_score"].tolist() == pytest.approx([80.0, -80.0] * 35, abs=1e-4)


def test_perceptual_is_what_the_cosine_lacks() -> None:
    rows = [PromptRow("x")] * 3
    view = _view(rows, _pictures((1, 0, 0), (3, 4, 0), (1, 1, 1)), BALL, TableSight({}))
    assert _look("perceptual", view)["perceptual"].tolist() == [0.0] * 3
    view = replace(view, before=_pictures((2, 0, 0), (4, 3, 0), (-1, -1, -1)))
    assert _look("perceptual", view)["perceptual"].tolist() == pytest.approx([0.0, 0.04, 2.0], abs=1e-6)


def _noise(count: int, side: int, seed: int) -> Tensor:
    return torch.rand(count, 3, side, side + 7, generator=torch.Generator().manual_seed(seed))


def test_pixel_difference_and_ssim() -> None:
    before = torch.cat([_noise(1, 32, 1), torch.zeros(1, 3, 32, 39), _noise(1, 32, 1)])
    after = torch.cat([before[:1], torch.ones(1, 3, 32, 39), _noise(1, 32, 2)])
    view = replace(_view([PromptRow("x")] * 3, after, BALL, None), before=before)
    found = _look("difference", view)
    assert found["pixel_rms"].tolist() == pytest.approx([0.0, 1.0, math.sqrt(1 / 6)], abs=0.01)
    one = structural_similarity_index_measure(after[2:], before[2:], data_range=1.0)
    assert found["ssim"].tolist() == pytest.approx([1.0, 1e-4 / (1 + 1e-4), float(one)], abs=1e-5)
    assert float(found["ssim"][2]) < 0.1


def test_ssim_of_a_picture_does_not_depend_on_its_contrast_range() -> None:
    """Flat grey pictures a, b have (2ab + c) / (a^2 + b^2 + c) with c = 0.01^2, whatever the others' range is."""
    view = replace(
        _view([PromptRow("x")], torch.full((1, 3, 32, 32), 0.02), BALL, None), before=torch.zeros(1, 3, 32, 32)
    )
    assert float(_look("difference", view)["ssim"]) == pytest.approx(1e-4 / (4e-4 + 1e-4), rel=1e-3)


@pytest.mark.parametrize("spoil", [lambda p: p[..., 1:], lambda p: p / 0])
def test_pictures_that_do_not_fit_each_other(spoil: Callable[[Tensor], Tensor]) -> None:
    before = _noise(1, 32, 1)
    view = replace(_view([PromptRow("x")], before, BALL, None), before=spoil(before))
    with pytest.raises((SettingError, NumericsError), match=r"shapes|not finite"):
        _look("difference", view)
    small = _view([PromptRow("x")], before[..., :5, :], BALL, None)
    with pytest.raises(SettingError, match="sides of 6"):
        _look("difference", small)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("lethe.erasers.measure.library.find_spec", lambda n: None if n == "torchmetrics" else find(n))
    view = _view([PromptRow("x")], _noise(1, 32, 1), BALL, None)
    for name in ("difference", "lpips"):
        probe = probe_named(name)
        assert "pip install torchmetrics" in probe.lacks(view)
        with pytest.raises(SettingError, match="pip install torchmetrics"):
            probe.look(view, {})


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub folder, and no way to download into it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_lpips_asks_for_the_users_weights(checkpoints: Path) -> None:
    view = _view([PromptRow("x")], _noise(1, 64, 1), BALL, None)
    lacks = probe_named("lpips").lacks(view)
    assert "checkpoints" in lacks and "alexnet-owt-7be5be79.pth" in lacks
    assert str(checkpoints) not in lacks, "reports are shared"
    with pytest.raises(SettingError, match="alexnet-owt"):
        lpips.PROBE.look(view, {})
    assert not checkpoints.exists()


def test_lpips_is_zero_for_equal_pictures_only(checkpoints: Path) -> None:
    """With random weights under torchvision's name: the file is read, and pictures are compared one by one."""
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), checkpoints / "alexnet-owt-7be5be79.pth")
    after = torch.cat([_noise(1, 64, 1), _noise(1, 64, 2)])
    before = torch.cat([after[:1], 1 - after[1:]])
    found = _look("lpips", replace(_view([PromptRow("x")] * 2, after, BALL, None), before=before))
    assert found["lpips"].shape == (2,)
    assert float(found["lpips"][0]) == 0.0
    assert float(found["lpips"][1]) > 0.0
    small = _view([PromptRow("x")], _noise(1, 30, 1), BALL, None)
    with pytest.raises(SettingError, match="sides of 31"):
        _look("lpips", small)
    edge = replace(_view([PromptRow("x")], _noise(1, 31, 1), BALL, None), before=_noise(1, 31, 2))
    assert math.isfinite(float(_look("lpips", edge)["lpips"]))


class _Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("the file's code was run",)


def test_lpips_runs_no_code_out_of_the_file(checkpoints: Path) -> None:
    checkpoints.mkdir(parents=True)
    path = checkpoints / "alexnet-owt-7be5be79.pth"
    torch.save({"features.0.weight": _Trap()}, path)
    view = _view([PromptRow("x")], _noise(1, 64, 1), BALL, None)
    with pytest.raises(SettingError, match="does not hold AlexNet"):
        _look("lpips", view)
    for content in (b"", b"cut short", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(SettingError, match="does not hold AlexNet"):
            _look("lpips", view)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(SettingError, match="does not hold AlexNet"):
        _look("lpips", view)


def test_the_demo_worlds_pair_recognises_its_pictures() -> None:
    """Five things drawn, judged against each other; a shift by one place is recognised by none."""
    gallery, names = Gallery(steps=12), ("ball", "box", "star", "tree", "ring")
    pictures = gallery.draw([f"a {name}" for name in names], seed=3, steps=12)
    near = names[2:]
    rows = [PromptRow("a ball", DIRECT, "ball"), PromptRow("a ball", DIRECT, "ball")]
    rows += [PromptRow(f"a {name}", NEAR, subject=name) for name in near]
    concepts = ConceptList((Concept("ball", "box"),))
    view = _view(rows, pictures, concepts, Sight(gallery), near="|".join(near))
    right = _look("clip_zero_shot", view)
    assert right["concept"].tolist() == [True, False, False, False, False]
    assert right["subject"].tolist() == [False, False, True, True, True]
    wrong = _look("clip_zero_shot", replace(view, pictures=pictures.roll(1, 0)))
    assert not bool(wrong["concept"][0]) and not bool(wrong["subject"].any())
    scores = [
        _look("clip_score", replace(view, pictures=p))["clip_score"].mean() for p in (pictures, pictures.roll(1, 0))
    ]
    assert float(scores[0] - scores[1]) > 20
