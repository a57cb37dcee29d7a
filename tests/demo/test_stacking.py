"""The figures of stacks: of the weights that are shipped, as the README tells them, and as good as is promised."""

from __future__ import annotations

import json
from pathlib import Path

from lethe.erasers.demo import stacking
from lethe.erasers.demo.world import weights_digest

ROWS = json.loads((stacking.TABLES / "stacking.json").read_text(encoding="utf-8"))
README = (Path(stacking.__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_figures_are_of_the_shipped_weights_and_of_every_mode() -> None:
    assert ROWS["weights"] == weights_digest()
    assert {(row["mode"], row["count"]) for row in ROWS["rows"]} == {
        (mode, count) for mode in stacking.SETTINGS for count in stacking.COUNTS
    }
    assert len(stacking.CASES) == max(stacking.COUNTS)
    assert not {case.replacement for case in stacking.CASES} & {case.name for case in stacking.CASES}


def test_the_readme_tells_them() -> None:
    tables = (stacking.TABLES / "stacking.md").read_text(encoding="utf-8").strip().split("\n\n")
    assert [stacking.table(ROWS["rows"]), stacking.attack_table(ROWS["rows"])] == tables
    for name, table in zip(("stacking", "stacking attacks"), tables, strict=True):
        assert README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip() == table


def test_a_gate_that_reads_features_lets_other_words_through_no_more_than_the_sum_does() -> None:
    rows = {row["mode"]: row for row in ROWS["rows"] if row["count"] == max(stacking.COUNTS)}
    gated, plain = rows["gated, discriminant"], rows["sum"]
    assert gated["synonym"] < plain["synonym"] + 0.1 < rows["gated, transport"]["synonym"]
    assert stacking.kept(gated) > stacking.kept(plain) + 0.2


def test_gated_stacks_keep_untouched_concepts_within_a_point_at_twenty() -> None:
    (row,) = (row for row in ROWS["rows"] if row["mode"] == "gated, transport" and row["count"] == 20)
    assert stacking.kept(row) >= stacking.kept(row, "_before") - 0.01
    assert row["erased"] > 0.9


def test_one_small_measurement_runs() -> None:
    row = stacking.measure(2, 4, "uce", (1,), {"gated": stacking.Setting("gated", {"gate": "transport"})}, ())[0]
    assert row["mode"] == "gated"
    assert row["near"] == row["near_before"]
