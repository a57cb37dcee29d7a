"""The leaderboard: its jobs, in processes and on a Ray cluster of this machine, and what it writes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lethe.erasers.concepts import ConceptList
from lethe.erasers.demo import leaderboard
from lethe.erasers.demo.graph import leaderboard_graph
from lethe.erasers.demo.leaderboard import FOLDER, Job, details, overview, run_job, write
from lethe.erasers.demo.making import GUARD, eraser_names, guard_names
from lethe.erasers.demo.sets import CASES, demo_rows
from lethe.erasers.demo.spread import on_processes, on_ray
from lethe.erasers.demo.world import weights_digest
from lethe.erasers.measure.red_team import Shows, look
from lethe.erasers.measure.report import from_json, to_json
from lethe.erasers.prompts import DIRECT, FAR, KINDS, NEAR
from lethe.erasers.registry import attacks, guards, methods, probes
from lethe.erasers.target import Target

TINY = {"paraphrase": {"tries": 1, "limit": 2}}


def _jobs(tmp_path: Path) -> list[Job]:
    return [Job(method, "ball", TINY, 2, 1, 2, str(tmp_path / "album")) for method in ("uce", "rece")]


@pytest.mark.slow
def test_processes_do_the_jobs_and_the_table_holds_them(tmp_path: Path) -> None:
    found = [report for reports in on_processes(run_job, _jobs(tmp_path), 2) for report in reports]
    assert sorted(report.title for report in found) == ["rece", "rece", "uce", "uce"]
    write(found, "tiny", tmp_path / "tables")
    table = overview(found)
    assert [row["method"] for row in table] == [*dict.fromkeys(r.title for r in found), "(untouched)"]
    *attacked, untouched = table
    assert all(row["all attacks"].startswith(f"{row['paraphrase']} (") for row in attacked)
    assert untouched["all attacks"] == untouched["paraphrase"]
    rows = details(found)
    assert {(row["method"], row["concept"]) for row in rows} == {("uce", "ball"), ("rece", "ball")}
    assert all({"erased", "kept", "leaked", "unattacked", "paraphrase"} <= set(row) for row in rows)
    kept = json.loads((tmp_path / "tables" / "leaderboard.json").read_text(encoding="utf-8"))
    assert kept["weights"] == weights_digest()
    assert (tmp_path / "tables" / "leaderboard.png").is_file()
    (album,) = (tmp_path / "album").iterdir()
    assert len(list(album.glob("*.png"))) > 10


SLEEPS = "import time; print('begun', flush=True); time.sleep(600)"
BOSS = f"from lethe.erasers.demo.spread import on_processes; list(on_processes(exec, [{SLEEPS!r}], 1))"


def test_a_worker_ends_with_whoever_asked_for_its_work() -> None:
    with subprocess.Popen([sys.executable, "-c", BOSS], stdout=subprocess.PIPE, text=True) as boss:
        assert boss.stdout is not None
        assert boss.stdout.readline() == "begun\n"
        boss.kill()
        assert boss.communicate(timeout=30)[0] == ""  # the worker holds this pipe too, while it lives


def test_a_run_that_is_stopped_keeps_what_it_has_and_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = from_json((FOLDER / "leaderboard.json").read_text(encoding="utf-8"))
    old = {name: [report for report in shipped if report.title == name] for name in ("uce", "rece", "esd")}
    old["no more"] = [replace(old["uce"][0], title="no more")]
    write([report for own in old.values() for report in own], "old", tmp_path)
    new = [
        replace(report, made_with={"new": True, "attack": "p4d"}) for report in old["uce"] if "ball" in report.concepts
    ]

    def stopped(_: object, work: Sequence[Job]) -> Iterator[Sequence[object]]:
        assert [(job.method, job.word) for job in work] == [
            (method, word) for method in ("uce", "rece") for word in leaderboard.WORDS
        ]
        yield new
        raise KeyboardInterrupt

    monkeypatch.setattr(leaderboard, "spread", stopped)
    command = ["leaderboard", "--methods", "uce", "rece", "--folder", str(tmp_path), "--album", str(tmp_path)]
    for keep in ([], ["--keep"]):
        monkeypatch.setattr(sys, "argv", [*command, *keep])
        with pytest.raises(KeyboardInterrupt):
            leaderboard.main()
        found = from_json((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
        assert {leaderboard.row_of(report) for report in found} == {
            leaderboard.row_of(r) for own in old.values() for r in own
        }
        assert [r for r in found if leaderboard.row_of(r) == ("uce", "ball")] == new
    for keep, left in ((["--keep"], {"uce", "esd", "no more"}), ([], {"uce"})):
        monkeypatch.setattr(leaderboard, "spread", lambda *_: [new])
        monkeypatch.setattr(sys, "argv", [*command, *keep])
        leaderboard.main()
        found = from_json((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
        assert {report.title for report in found} == left


@pytest.mark.slow
def test_a_ray_cluster_does_the_same_jobs(tmp_path: Path) -> None:
    (reports,) = on_ray(run_job, _jobs(tmp_path)[:1], "local")
    (alone,) = on_processes(run_job, _jobs(tmp_path)[:1], 1)
    assert to_json([reports[0]]).partition('"seconds')[0] == to_json([alone[0]]).partition('"seconds')[0]


def test_the_shipped_table_is_of_this_world_and_of_every_method_and_attack() -> None:
    text = (FOLDER / "leaderboard.json").read_text(encoding="utf-8")
    assert json.loads(text)["weights"] == weights_digest()
    reports = from_json(text)
    assert {report.title for report in reports} >= set(eraser_names()) & set(methods())
    assert {report.made_with.get("attack") for report in reports} - {None} == set(attacks())
    assert set(leaderboard.REDUCED) <= set(attacks())
    page = (Path(leaderboard.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    written, _, _ = (FOLDER / "leaderboard.md").read_text(encoding="utf-8").partition("By concept")
    assert all(line in page for line in written.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(("word", "sentences"), [("ball", "scenes"), ("dotted", "styled scenes")])
def test_guards_have_rows_with_their_settings_for_small_models(word: str, sentences: str) -> None:
    graph = leaderboard_graph(word, guard_names(), {}, {}, 1, ((), ()))
    nodes = [node["inputs"] for node in graph.values() if node["class_type"] == "LetheGuard"]
    assert [GUARD + node["guard"] for node in nodes] == list(guard_names())
    for node in nodes:
        spec = guards()[node["guard"]].spec
        given = {name.removeprefix("guard."): value for name, value in node.items() if name.startswith("guard.")}
        framed = {"templates": sentences} if spec.small.get("templates") == "scenes" else {}
        assert given == spec.settings({**spec.small, **framed})
    assert {node["guard"] for node in nodes if node.get("guard.templates") == sentences} == {"elucd", "h_space"}


def test_what_acts_in_the_guidance_alone_is_attacked_with_guidance() -> None:
    options = argparse.Namespace(
        methods=["guard:negative", "guard:sld", "uce"],
        concepts=["ball"], attacks=None, each_kind=1, pictures=1, steps=1, album="",
    )  # fmt: skip
    guided, *others = leaderboard.jobs(options)
    looking = {name for name, given in guided.attacks.items() if given.get("guidance") == 4.0}
    assert looking == {"cce", "dori", "p4d", "unlearn_diff_atk"}
    assert guided.attacks["p4d"].items() >= leaderboard.REDUCED["p4d"].items()
    assert all("guidance" not in given for job in others for given in job.attacks.values())
    assert [dict(job.attacks) for job in others] == [{n: leaderboard.REDUCED.get(n, {}) for n in attacks()}] * 2


@pytest.mark.slow
def test_rece_holds_against_the_features_that_break_uce() -> None:
    """What RECE is for: it erases the very features that bring the concept back through UCE's edit."""
    from lethe.erasers.demo.gallery import Gallery

    gallery = Gallery(steps=10)
    concepts = ConceptList((CASES["red"],), lists=("demo-world",))
    models = {}
    for name in ("uce", "rece"):
        method = methods()[name]
        models[name] = gallery.erased(method.fit(gallery.task(concepts), method.spec.settings({})))
    uce = models["uce"]
    shows = Shows(probes()["demo_judge"], {}, CASES["red"], concepts)
    prompts = leaderboard.prompts_of("red")
    target = Target(CASES["red"], prompts, uce.model, gallery.model, uce, shows)
    attack = attacks()["derived"]
    found = attack.run(target, attack.spec.settings({"tries": 2}))
    broken, held = (look(target, models[name], found.cues, 4).shown.float().mean() for name in ("uce", "rece"))
    assert float(broken) > 0.8
    assert float(held) < 0.5


@pytest.mark.parametrize("word", sorted(CASES))
def test_sets_ask_for_the_concept_or_leave_it_alone(word: str) -> None:
    rows = demo_rows(CASES[word], 12)
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    assert set(KINDS) - set(kinds) <= {"compositional"}
    for row in rows:
        words = set(row.text.replace(",", "").split())
        assert (word in words) == (row.kind in (DIRECT, "compositional")), row
        if row.kind in (NEAR, FAR):
            assert row.subject
            assert row.concept == ""
        else:
            assert row.concept == CASES[word].text
            assert row.floor is not None
            assert word not in row.floor.replace(",", "").split()
    assert demo_rows(CASES[word], 12) == rows
    assert demo_rows(CASES[word], 12, seed=8) != rows
