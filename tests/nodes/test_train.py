"""Training on the real host: the node, interrupting, going on, running out of memory, and what stays untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError, TrainingError

CONCEPTS = ConceptList(preserve=("a tree",)).with_concept(Concept("ball", "box"))
QUICK = {"recipe": "esd", "sampling_steps": 6, "trajectories": 2}


def run(demo: Any, steps: int = 6, concepts: ConceptList = CONCEPTS, recipe: Any = QUICK, **given: Any) -> Any:
    from lethe.nodes.train import LetheTrain

    with torch.inference_mode():
        settings = {"steps": steps, "batch": 2, "look_every": 3, **given}
        return LetheTrain.execute(demo[0], demo[1], concepts, recipe=recipe, **settings).result


def state_of(demo: Any) -> dict[str, torch.Tensor]:
    found = {**demo[0].model.state_dict(), **demo[1].cond_stage_model.state_dict()}
    return {name: value.clone() for name, value in found.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def hooks_of(demo: Any) -> int:
    modules = [*demo[0].model.modules(), *demo[1].cond_stage_model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in modules)


@pytest.fixture(scope="module")
def trained(demo: Any) -> Any:
    return run(demo, vae=demo[2])


def test_it_gives_model_eraser_losses_and_curves(demo: Any, trained: Any) -> None:
    model, clip, eraser, losses, chart, summary = trained
    assert model is not demo[0]
    assert clip is demo[1]
    assert eraser.recipe.method == "esd"
    assert eraser.recipe.settings["steps"] == 6
    assert len(losses["loss"]) == 6
    assert losses["loss"][-1] > 0
    assert chart.shape[0] == 1
    assert chart.shape[-1] == 3
    assert "6 steps" in summary


def test_the_loaded_model_is_bit_equal_and_carries_no_hook(demo: Any) -> None:
    before, hooks = state_of(demo), hooks_of(demo)
    run(demo, vae=demo[2], checkpointing=True)
    assert same(before, state_of(demo))
    assert hooks_of(demo) == hooks


def test_the_model_that_comes_out_predicts_what_the_student_did(demo: Any, trained: Any) -> None:
    from lethe.nodes.host.model import HostModel

    with torch.inference_mode(False), torch.no_grad():
        plain, edited = HostModel(demo[0], demo[1]), HostModel(trained[0], trained[1])
        context = plain.tower().run(["ball"])[0]
        x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with plain.ready():
            before = plain.predict(x, torch.tensor([1.0]), context)
        with edited.ready():
            after = edited.predict(x, torch.tensor([1.0]), context)
    assert float((after - before).norm() / before.norm()) > 1e-3


def test_going_on_is_as_if_it_had_never_stopped(demo: Any) -> None:
    """With a rate that does not depend on the number of steps, as LECO's; for others see the interrupted run below."""
    own = {**QUICK, "recipe": "leco"}
    half = run(demo, steps=4, recipe=own, look_every=0)[2]
    whole, straight = (run(demo, recipe=own, look_every=0, **given)[2] for given in ({"resume": half}, {}))
    assert whole.recipe.settings["steps"] == 6
    assert whole.adapters.keys() == straight.adapters.keys() != set()
    assert all(
        torch.equal(edit.tensors()[kind], tensor)
        for name, edit in whole.adapters.items()
        for kind, tensor in straight.adapters[name].tensors().items()
    )


def test_interrupting_ends_the_run_or_keeps_what_was_learned(demo: Any) -> None:
    import comfy.model_management as management

    before = state_of(demo)
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        run(demo)
    calls = []

    def interrupt_later(*_args: Any, **_named: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            management.interrupt_current_processing()

    import comfy.utils

    previous = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(interrupt_later)
    try:
        found = run(demo, on_interrupt="keep what was learned")
    finally:
        comfy.utils.set_progress_bar_global_hook(previous)
    assert found[2].recipe.settings["steps"] < 6
    assert "interrupted" in found[5]
    assert same(before, state_of(demo))
    again = run(demo, look_every=0, resume=found[2])[2]
    whole = run(demo, look_every=0)[2]
    assert all(torch.equal(edit.dense, whole.adapters[name].dense) for name, edit in again.adapters.items())


def test_running_out_of_memory_leaves_the_model_as_it_was(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, hooks, calls = state_of(demo), hooks_of(demo), []
    own = type(demo[0].model).apply_model

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 16:
            raise torch.OutOfMemoryError("no memory left")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(demo[0].model), "apply_model", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(demo)
    monkeypatch.undo()
    assert same(before, state_of(demo))
    assert hooks_of(demo) == hooks


def test_an_eraser_that_is_there_already_or_does_not_fit_is_refused(demo: Any, trained: Any) -> None:
    with pytest.raises(SettingError, match="already carries"):
        run((trained[0], demo[1]), resume=trained[2])
    with pytest.raises(TrainingError, match="other settings"):
        run(demo, resume=trained[2], recipe={**QUICK, "sites": "self"})
    bare = run(demo, steps=2, keep_state=False)[2]
    assert not bare.training
    with pytest.raises(TrainingError, match="state"):
        run(demo, resume=bare)


def test_pictures_need_a_vae(demo: Any) -> None:
    with pytest.raises(SettingError, match="VAE"):
        run(demo, images=torch.rand(1, 128, 128, 3))


def test_it_stops_when_the_probe_sees_the_concept_no_more(demo: Any) -> None:
    found = run(demo, steps=200, look_every=20, stop_when_gone="demo_judge", learning_rate=3e-4, batch=4, vae=demo[2])
    assert found[2].recipe.settings["steps"] < 200
    assert "seen in none" in found[5]
