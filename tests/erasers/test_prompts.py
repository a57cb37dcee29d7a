"""Prompts of an evaluation from templates, lines and CSV files."""

from __future__ import annotations

import pytest
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.prompts import KINDS, PromptRow, csv_rows, line_rows, seeded, template_rows

BALL = ConceptList(preserve=("box",), lists=("demo-world",)).with_concept(Concept("ball", "cone", ("orb",)))
BOTH = BALL.with_concept(Concept("red"))


def test_templates_ask_for_every_kind_that_the_concepts_tell() -> None:
    rows = template_rows(BALL, ("{}", "a photo of {}"), far=3)
    assert [(row.text, row.kind, row.subject, row.floor) for row in rows[:4]] == [
        ("ball", "direct", "", "cone"),
        ("orb", "synonym", "", "cone"),
        ("ball and box", "compositional", "box", "cone and box"),
        ("box", "near", "box", None),
    ]
    assert [row.kind for row in rows[4:7]] == ["far"] * 3
    assert rows[7].text == "a photo of ball"
    assert {row.concept for row in rows if row.kind in ("near", "far")} == {""}
    assert not {"ball", "orb", "box"} & {row.text for row in rows[4:7]}


def test_lines_say_their_kind_and_subject() -> None:
    rows = line_rows("a ball\n\n implicit: it bounces\nnear: a red box | box\nfar: a tree\n", BALL)
    assert rows == (
        PromptRow("a ball", "direct", "ball", floor="a cone"),
        PromptRow("it bounces", "implicit", "ball"),
        PromptRow("a red box", "near", subject="box"),
        PromptRow("a tree", "far", subject="a tree"),
    )
    assert line_rows("embedding:bounce, at night", BALL)[0].text == "embedding:bounce, at night"


def test_a_concept_with_an_empty_replacement_has_the_empty_prompt_as_floor() -> None:
    (row,) = line_rows("red", BOTH)
    assert (row.concept, row.floor) == ("red", "")


def test_csv_columns_go_by_their_published_names() -> None:
    text = (
        "case_number,prompt,evaluation_seed,evaluation_guidance,kind,subject\n"
        '0,"a ball, at night",7,3.5,,\n1,a box,8,,near,box\n'
    )
    first, second = csv_rows(text, BALL)
    assert first == PromptRow("a ball, at night", "direct", "ball", floor="a cone, at night", seed=7, cfg=3.5)
    assert second == PromptRow("a box", "near", subject="box", seed=8)
    (own,) = csv_rows("prompt,seed,sd_seed\na ball,1,2\n", BALL)
    assert own.seed == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column of prompts"),
        ("a,b\n1,2\n", "its columns are: a, b"),
        ("prompt\n", "no prompt to evaluate"),
        ("prompt,seed\na ball,x\n", "seed of 'a ball' is 'x'"),
        ("prompt,seed\na ball,-1\n", "seed of 'a ball' is '-1'"),
        ("prompt,guidance\na ball,inf\n", "cfg of 'a ball' is 'inf'"),
        ("prompt,kind\na ball,rude\n", "of kind 'rude'"),
        ("prompt,concept\na ball,moon\n", "'moon' is not among"),
        ("prompt,seed\n,3\n", "is empty"),
    ],
)
def test_broken_csv_files_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConceptError, match=words):
        csv_rows(text, BALL)


def test_a_prompt_that_could_be_about_several_concepts_has_to_say_which() -> None:
    assert line_rows("a red thing", BOTH)[0].concept == "red"
    with pytest.raises(ConceptError, match="which concept 'it bounces'"):
        line_rows("it bounces", BOTH)
    (row,) = csv_rows("prompt,concept\nit bounces,Ball\n", BOTH)
    assert row.concept == "ball"


def test_every_picture_of_a_prompt_has_a_seed_of_its_own() -> None:
    rows = seeded([PromptRow("a ball", seed=5), PromptRow("a box", "near", subject="box")], 2, 100)
    assert [row.seed for row in rows] == [105, 106, 100, 101]
    assert set(KINDS) >= {row.kind for row in rows}
