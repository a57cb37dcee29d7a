"""Settings are checked before anything runs."""

from __future__ import annotations

import pytest
from lethe.erasers.demo.making import GUARD, guard_names
from lethe.erasers.errors import LetheError, SettingError
from lethe.erasers.registry import guards, method_named, methods
from lethe.erasers.spec import MethodSpec, Parameter

SPEC = MethodSpec(
    name="toy",
    title="Toy",
    paper="none",
    summary="none",
    families=(),
    parameters=(
        Parameter("on", True, "t"),
        Parameter("rank", 4, "t", minimum=1, maximum=8),
        Parameter("ridge", 0.5, "t", minimum=0.0, maximum=1.0),
        Parameter("rule", "a", "t", choices=("a", "b")),
    ),
)


def test_defaults_fill_what_is_not_given() -> None:
    assert SPEC.settings({"rank": 2}) == {"on": True, "rank": 2, "ridge": 0.5, "rule": "a"}


@pytest.mark.parametrize(
    "given",
    [
        {"ridge": float("nan")},
        {"ridge": float("inf")},
        {"ridge": -0.1},
        {"ridge": 1.5},
        {"ridge": "1"},
        {"rank": 2.5},
        {"rank": True},
        {"rank": 9},
        {"on": 1},
        {"rule": "c"},
        {"unknown": 1},
    ],
)
def test_bad_settings_are_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(given))):
        SPEC.settings(given)


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(SettingError, match="uce"):
        method_named("nonsense")


def test_every_method_explains_itself() -> None:
    for name, method in methods().items():
        spec = method.spec
        assert spec.name == name
        assert "arXiv" in spec.paper
        assert spec.settings({})
        assert len({parameter.name for parameter in spec.parameters}) == len(spec.parameters)
        for parameter in spec.parameters:
            assert len(parameter.tooltip) > 20, f"{name}.{parameter.name}"


def test_errors_name_the_pack_and_not_a_path() -> None:
    for kind in LetheError.__subclasses__():
        assert kind.__module__ == "lethe"
        assert "Nothing was changed" in str(kind("Problem.", "Advice."))


def test_guards_that_the_user_has_to_give_something_have_no_row_of_their_own() -> None:
    asking = {name for name, guard in guards().items() if guard.spec.asks}
    assert asking == {"attentive_eraser", "scaling"}
    assert guard_names() == tuple(f"{GUARD}{name}" for name in guards() if name not in asking)


def test_settings_for_small_models_are_settings_that_differ_from_the_defaults() -> None:
    for name, guard in guards().items():
        spec = guard.spec
        settings, defaults = spec.settings(spec.small), spec.settings({})
        assert {own for own in settings if settings[own] != defaults[own]} == set(spec.small), name
