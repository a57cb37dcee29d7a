"""Counting: an evaluation of pictures that say what they show, against shares computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ReportError, SettingError
from lethe.erasers.measure.chart import comes_back, kinds_chart, overview_chart
from lethe.erasers.measure.evaluation import Arm, Evaluation, Plan, evaluate
from lethe.erasers.measure.intervals import Interval
from lethe.erasers.measure.page import markdown
from lethe.erasers.measure.red_team import BASE, GUARDED, PLAIN, Shows, besiege, look_plain
from lethe.erasers.measure.report import Report, attack_report, evaluation_report, from_json, shown, to_json
from lethe.erasers.painter import Shot, prompted
from lethe.erasers.probe import CONCEPT, SUBJECT, View
from lethe.erasers.prompts import PromptRow
from lethe.erasers.registry import probes
from lethe.erasers.spec import MethodSpec
from lethe.erasers.target import Attack, Found, Target
from torch import Tensor

CONCEPTS = ConceptList().with_concept(Concept("ball", "cone"))
CONCEPT_LEVEL, SUBJECT_LEVEL = 1.0, 0.5


class Colours:
    """A probe of pictures whose level says what they show: 1 the concept, one half the subject."""

    spec = MethodSpec("colours", "Colours", "", "", (), ())
    recognises = True
    need = ""

    def lacks(self, view: View) -> str:
        return self.need

    def look(self, view: View, settings: Mapping[str, object]) -> dict[str, Tensor]:
        level = view.pictures.flatten(1).mean(1)
        asked = torch.tensor([bool(row.subject) for row in view.rows])
        return {CONCEPT: level == CONCEPT_LEVEL, SUBJECT: (level == SUBJECT_LEVEL) & asked}


class Brightness:
    """A probe that only measures."""

    spec = MethodSpec("brightness", "Brightness", "", "", (), ())
    recognises = False

    def lacks(self, view: View) -> str:
        return "" if view.sight is None else "no sight"

    def look(self, view: View, settings: Mapping[str, object]) -> dict[str, Tensor]:
        return {"brightness": (view.pictures - view.before).flatten(1).mean(1)}


class Scripted:
    """Draws the level that a script has for prompt and seed, and remembers what it was asked."""

    def __init__(self, script: Mapping[str, Sequence[float]]) -> None:
        self.script, self.asked = script, list[str]()

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        self.asked += [shot.cue.text for shot in shots]
        levels = [self.script[shot.cue.text][shot.seed] for shot in shots]
        return torch.tensor(levels, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)

    def settings(self) -> dict[str, int]:
        return {}

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(1)


BEFORE = Scripted({"ball": [1, 1, 1, 0], "cone": [1, 0, 0, 0], "orb": [1, 1, 1, 1], "box": [0.5, 0.5, 0.5, 0]})
AFTER = Scripted({"ball": [1, 0, 0, 0], "orb": [1, 1, 0, 0], "box": [0.5, 0.5, 0, 0]})
ROWS = tuple(
    replace(row, seed=seed)
    for row in (
        PromptRow("ball", "direct", "ball", floor="cone"),
        PromptRow("orb", "synonym", "ball", floor="cone"),
        PromptRow("box", "near", subject="box"),
    )
    for seed in range(4)
)


def _plan(**changes: object) -> Plan:
    return replace(Plan(CONCEPTS, ROWS, (Colours(), {}), ((Brightness(), {}),), batch=5), **changes)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(Arm(BEFORE), Arm(AFTER), _plan())


def test_shares_are_those_computed_by_hand(found: Evaluation) -> None:
    assert found.floor.value == 0.25
    assert found.erased.value == pytest.approx((0.75 - 0.25) / (0.75 - 0.25))
    assert found.leaked.value == pytest.approx((0.5 - 0.25) / (1 - 0.25))
    assert found.kept.value == pytest.approx(0.5 / 0.75)
    direct = found.kind("direct")
    assert direct is not None
    assert (direct.before.value, direct.after.value, direct.after.count) == (0.75, 0.25, 4)
    assert direct.p_value == pytest.approx(0.5)
    near = found.kind("near")
    assert near is not None
    assert (near.asked, near.before.value, near.after.value) == (SUBJECT, 0.75, 0.5)
    assert found.kind("far") is None
    before, after = found.columns["brightness"]["erased prompts"]
    assert (before.value, after.value) == (0, pytest.approx(-4 / 8))


def test_an_untouched_model_has_erased_nothing() -> None:
    same = evaluate(Arm(BEFORE), Arm(BEFORE), _plan())
    assert (same.erased.value, same.kept.value, same.leaked.value) == (0, 1, 1)


def test_a_concept_that_was_never_drawn_has_no_share_erased() -> None:
    never = Scripted({**BEFORE.script, "ball": [0, 0, 0, 0], "cone": [0, 0, 0, 0]})
    assert math.isnan(evaluate(Arm(never), Arm(AFTER), _plan()).erased.value)


def test_only_direct_prompts_have_their_floor_drawn() -> None:
    BEFORE.asked.clear()
    evaluate(Arm(BEFORE), Arm(AFTER), _plan())
    assert BEFORE.asked.count("cone") == 4
    assert len(BEFORE.asked) == 16


class Counting:
    """A sight of pictures by their level, and how many it was shown."""

    def __init__(self) -> None:
        self.pictures = 0

    def embed_images(self, images: Tensor) -> Tensor:
        self.pictures += len(images)
        return torch.stack([images.flatten(1).mean(1), torch.ones(len(images))], 1)

    def embed_latents(self, latents: Tensor) -> Tensor:
        return self.embed_images(latents)

    def embed_text(self, prompts: list[str]) -> Tensor:
        return torch.ones(len(prompts), 2)


def test_no_picture_is_embedded_twice_for_several_probes() -> None:
    others = tuple((probes()[name], {}) for name in ("clip_score", "perceptual"))
    counting = Counting()
    found = evaluate(Arm(BEFORE), Arm(AFTER), _plan(sight=counting, others=others))
    assert counting.pictures == 2 * len(ROWS)
    assert found.columns["perceptual"]["kept prompts"][1].value > 0
    fresh = evaluate(Arm(BEFORE), Arm(AFTER), _plan(sight=counting, others=others, batch=len(ROWS)))
    assert fresh.columns == found.columns


def test_what_a_probe_lacks_is_said() -> None:
    judge = Colours()
    judge.need = "Buy glasses."
    with pytest.raises(SettingError, match="Buy glasses"):
        evaluate(Arm(BEFORE), Arm(AFTER), _plan(judge=(judge, {})))
    with pytest.raises(SettingError, match="recognises nothing"):
        _plan(judge=(Brightness(), {}))
    with pytest.raises(SettingError, match="no prompt"):
        _plan(rows=())


def _report(found: Evaluation, title: str = "uce") -> Report:
    return evaluation_report(found, title, CONCEPTS, ROWS, {"seed": 3})


class Named:
    """An attack that always comes back with the same prompt."""

    spec = MethodSpec("named", "Named", "", "", (), ())

    def run(self, target: Target, settings: Mapping[str, object]) -> Found:
        return Found(tuple(prompted("orb") for _ in target.prompts), predictions=7, checks=2)


def _siege():  # type: ignore[no-untyped-def]
    attack: Attack = Named()
    target = Target(
        CONCEPTS.erase[0], ("ball", "ball"), None, None, AFTER, Shows(Colours(), {}, *CONCEPTS.erase, CONCEPTS)
    )  # type: ignore[arg-type]
    return target, besiege(attack, {}, target, BEFORE, look_plain(target, BEFORE, 4))


def test_an_attack_is_judged_in_four_arms() -> None:
    _, siege = _siege()
    shares = {arm: interval.value for arm, interval in siege.shown.items()}
    assert shares == {
        (BASE, PLAIN): 0.75, (GUARDED, PLAIN): 0.25, (BASE, "attacked"): 1.0, (GUARDED, "attacked"): 0.5,
    }  # fmt: skip
    assert (siege.pre_asr.value, siege.asr.value, siege.asr.count) == (1, 1, 2)
    assert siege.pictures.flatten(1).mean(1).tolist() == [1, 1, 1, 1]
    gone = Scripted({**AFTER.script, "ball": [0, 0, 0, 0]})
    target = replace(_siege()[0], painter=gone)
    siege = besiege(Named(), {}, target, BEFORE, look_plain(target, BEFORE, 2))
    assert (siege.pre_asr.value, siege.asr.value) == (0, 1)
    failing = replace(target, painter=Scripted({"ball": [1, 1], "orb": [0, 0]}))
    siege = besiege(Named(), {}, failing, BEFORE, look_plain(failing, BEFORE, 2))
    assert (siege.pre_asr.value, siege.asr.value, siege.shown[GUARDED, "attacked"].value) == (1, 1, 0)


def test_reports_survive_being_written(found: Evaluation) -> None:
    target, siege = _siege()
    attack = attack_report(siege, "named", {"budget": 1}, "uce", target, {"count": 4})
    reports = (_report(found), attack)
    again = from_json(to_json(reports))
    assert again[1].figures == reports[1].figures
    assert again[0].made_with["rows"][0]["text"] == "ball"  # type: ignore[index]
    assert again[0].scores == reports[0].scores
    page = markdown(again)
    assert "| uce | ball | 1.00" in page
    assert "noise predictions: 7" in page
    assert comes_back("uce", reports) == 0.5
    assert comes_back("uce", reports[:1]) == found.leaked.value
    for chart in (overview_chart(reports), kinds_chart(reports[0])):
        assert chart.ndim == 4
        assert 0 <= float(chart.min()) < 0.5 < float(chart.max()) <= 1
    for text in ("{", "[]", "{}", to_json(reports).replace('"format_version": 1', '"format_version": 2')):
        with pytest.raises(ReportError):
            from_json(text)


def test_figures_are_written_as_people_read_them() -> None:
    assert shown(Interval(0.42, 0.31, 0.54, 10)) == "0.42 (0.31 to 0.54)"
    assert shown(Interval(math.nan, math.nan, math.nan, 0)) == "n/a"
    assert shown(Interval(0.0042, math.nan, math.nan, 1)) == "0.0042"
