"""Few-shot erasing: the sign of its loss, what it trains and from what."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import CONCEPT, STUDENT, Ask, Features
from lethe.erasers.result import Eraser
from toy_trainee import gradient_names, job_of, run_of, tiny_task


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("source", ["of the concept", "random"])
def test_the_loss_is_minus_that_of_textual_inversion(source: str, prediction: str) -> None:
    task = tiny_task(prediction=prediction)
    run = run_of(job_of("few_shot", task, {"source": source, "pictures": 2}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents = moment["x"]
        run.make(moment)
        (loss,) = run.losses(moment)
        features = run.features([scene[CONCEPT] for scene in latents.scenes])
        said = run.teacher(latents, features)
        assert latents.clean is not None and latents.noise is not None
        truth = latents.noise
        if prediction == "v_prediction":
            root = (1 + latents.sigma.view(-1, 1, 1, 1) ** 2).sqrt()
            truth = latents.noise / root - latents.clean * latents.sigma.view(-1, 1, 1, 1) / root
        assert float(loss) == pytest.approx(-float((said - truth).square().mean()), rel=1e-4)
        assert not latents.x.requires_grad


@pytest.mark.parametrize("sites", ["mlp + last attention", "all"])
def test_exactly_the_text_encoders_layers_get_gradients(sites: str) -> None:
    task = tiny_task()
    run = run_of(job_of("few_shot", task, {"sites": sites, "source": "random"}), task)
    modules = dict(task.loaded().tower().module.named_modules())
    last = max(int(name.split(".layers.")[1].split(".")[0]) for name in modules if ".layers." in name)
    assert last > 0
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    chosen = (".mlp.fc1", ".mlp.fc2", f".layers.{last}.self_attn") if sites != "all" else (".encoder.layers.",)
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    stream = task.loaded().tower().stream
    assert found == {f"{stream}.{name}" for name in linear if any(part in name for part in chosen)} != set()


def test_the_users_pictures_are_what_is_unlearned() -> None:
    pictures = torch.randn(3, 4, 8, 8)
    task = tiny_task(pictures=pictures)
    run = run_of(job_of("few_shot", task), task)
    with torch.no_grad(), run.active():
        latents = [run.draw()["x"] for _ in range(12)]
    clean = torch.cat([own.clean for own in latents if own.clean is not None])
    assert all(any(torch.equal(own, picture) for picture in pictures) for own in clean)
    sentences = {scene[CONCEPT] for own in latents for scene in own.scenes}
    assert len(sentences) > 3 and all("ball" in sentence for sentence in sentences)
    assert run.predictions == 0


def test_training_raises_the_error_on_the_same_draw_and_leaves_both_models_alone() -> None:
    task = tiny_task()
    job = job_of("few_shot", task, {"source": "random"}, steps=1, rate=1e-3, batch=4)
    states = [task.model.unet.state_dict(), task.model.text_model.state_dict()]  # type: ignore[union-attr]
    before = [{name: value.clone() for name, value in state.items()} for state in states]
    found = train(task, job).eraser
    run = run_of(job, task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        first = float(run.losses(moment)[0])
        run.trainables.tensors.update(_tensors(found, run.trainables.tensors))
        states_now = run.of_role(Ask(STUDENT, CONCEPT), moment["x"])
        assert isinstance(states_now, Features)
        assert float(run.losses(moment)[0]) < first
    assert all(torch.equal(old[n], new[n]) for old, new in zip(before, states, strict=True) for n in old)
    assert found.text_encoder and not found.adapters


def _tensors(eraser: Eraser, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: eraser.text_encoder[f"{name}.weight"].delta(tuple(tensor.shape)) for name, tensor in like.items()}
