"""Erasers to and from other programs on the real host: its own loaders draw what 'Apply Eraser' draws."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import SITES, full_text, merged, thin_edit, tiny_base
from lethe.erasers.errors import EraserFileError, FamilyError, ReportError, SettingError
from lethe.erasers.exchange.base import ADAPTERS, TEXT
from lethe.erasers.exchange.reading import import_eraser
from lethe.erasers.measure.intervals import Interval
from lethe.erasers.measure.report import EVALUATION, Report
from lethe.erasers.result import Bottleneck, ContextOperator, Eraser, WeightEdit
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

PROMPT = "a red ball, flat style, on paper"
CONV, BIAS = "down_blocks.1.attentions.0.proj_in.weight", "down_blocks.1.attentions.0.proj_in.bias"
SITE = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"
VALUE = SITES[1]
FC1 = "clip_l.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def mixed(erased: Any) -> Eraser:
    """An operator, a thin edit of a convolution, a sparse one of a site, and a text-encoder part."""
    draw = torch.Generator().manual_seed(0)

    def thin(rows: int, columns: int) -> WeightEdit:
        up, down = torch.randn(rows, 2, generator=draw), torch.randn(2, columns, generator=draw)
        return WeightEdit(down=down, up=0.02 * up)

    sparse = WeightEdit(indices=torch.arange(6) * 100, values=torch.ones(6))
    return replace(erased[2], adapters={CONV: thin(128, 128), SITE: sparse}, text_encoder={FC1: thin(768, 192)})


def _sample(model: Any, clip: Any) -> torch.Tensor:
    import nodes

    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
        negative = nodes.CLIPTextEncode().encode(clip, "")[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, 6, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


def _apply(demo: Any, eraser: Eraser) -> torch.Tensor:
    from lethe.nodes.erase import LetheApply

    with torch.inference_mode():
        return _sample(*LetheApply.execute(demo[0], demo[1], eraser, 1.0, "weights").result)


def _save(demo: Any, eraser: Eraser, layout: str, rank: int | None = None, name: str = "out", **given: Any) -> Any:
    from lethe.nodes.files import LetheSave

    chosen = {"layout": layout} | ({} if rank is None else {"rank": rank})
    with torch.inference_mode():
        parts = {"model": demo[0], "clip": demo[1], **given}
        return LetheSave.execute(eraser, name, True, layout=chosen, **parts).result


def _import(demo: Any, name: str, concepts: str = "") -> Eraser:
    from lethe.nodes.exchange import LetheImport

    with torch.inference_mode():
        return LetheImport.execute(demo[0], demo[1], name, concepts).result[0]


def _folder(kind: str) -> Path:
    import folder_paths

    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_lora_model_draws_what_the_eraser_draws(demo: Any, erased: Any) -> None:
    from comfy_extras.nodes_train import LoraModelLoader
    from lethe.nodes.exchange import LetheToLora

    with torch.inference_mode():
        lora = LetheToLora.execute(demo[0], erased[2]).result[0]
        model = LoraModelLoader.execute(demo[0], lora, 1.0).result[0]
    assert all(type(value) is torch.Tensor for value in lora.values())
    assert _far(_sample(model, demo[1]), _apply(demo, erased[2])) < 1e-4
    assert _far(_sample(*demo[:2]), _apply(demo, erased[2])) > 0.05


@pytest.mark.parametrize("layout", ["ComfyUI LoRA", "kohya LoRA", "diffusers LoRA"])
def test_every_lora_draws_what_the_eraser_draws(demo: Any, mixed: Eraser, layout: str) -> None:
    import nodes

    name = _save(demo, mixed, layout, rank=None if layout == "ComfyUI LoRA" else 0)[1]
    if layout == "diffusers LoRA":  # This host has no loader for the plain names that pipelines read.
        from lethe.nodes.erase import LetheApply

        given = LetheApply.execute(demo[0], demo[1], _import(demo, f"loras/{name}"), 1.0, "weights").result
    else:
        given = nodes.LoraLoader().load_lora(demo[0], demo[1], name, 1.0, 1.0)
    wanted = _apply(demo, mixed)
    assert _far(_sample(*given), wanted) < 1e-4
    assert _far(_apply(demo, replace(mixed, adapters={}, text_encoder={})), wanted) > 1e-2


def test_a_lora_says_what_it_erases(demo: Any, mixed: Eraser) -> None:
    _, name, summary = _save(demo, mixed, "ComfyUI LoRA", name="sub/named")
    assert name == "sub/named.safetensors"
    assert "exact" in summary
    with safe_open(_folder("loras") / name, framework="pt") as file:
        found = file.metadata()
    assert (found["method"], found["family"], found["concepts"]) == ("uce", "demo", '["ball"]')
    assert _import(demo, f"loras/{name}").recipe.names == ("ball",)
    assert _import(demo, f"loras/{name}", "orb, \nsphere").recipe.names == ("orb", "sphere")


def test_changes_that_are_not_thin(demo: Any, mixed: Eraser) -> None:
    dense = WeightEdit(dense=torch.randn(128, 192, generator=torch.Generator().manual_seed(1)) * 0.01)
    bias = WeightEdit(dense=torch.full((128, 1), 0.1))
    eraser = replace(mixed, adapters={SITE: dense, BIAS: bias}, text_encoder={})
    import nodes

    name = _save(demo, eraser, "ComfyUI LoRA")[1]
    loaded = nodes.LoraLoader().load_lora(demo[0], demo[1], name, 1.0, 1.0)
    assert _far(_sample(*loaded), _apply(demo, eraser)) < 1e-4
    assert any(key.endswith("attn2.to_v.diff") for key in load_file(_folder("loras") / name))
    with pytest.raises(SettingError, match=r"proj_in\.bias"):
        _save(demo, eraser, "kohya LoRA", 0)
    thick = replace(eraser, adapters={SITE: dense})
    assert "exact" in _save(demo, thick, "kohya LoRA", 0)[2]
    loaded = nodes.LoraLoader().load_lora(demo[0], demo[1], name, 1.0, 1.0)
    assert _far(_sample(*loaded), _apply(demo, thick)) < 1e-4
    assert "keeps at least" in _save(demo, thick, "kohya LoRA", 8)[2]
    kept = load_file(_folder("loras") / "out.safetensors")
    assert max(value.shape[0] for key, value in kept.items() if "lora_down" in key) <= 8


def test_what_no_lora_can_hold_is_refused(demo: Any, erased: Any) -> None:
    eraser = erased[2]
    network = Bottleneck(torch.zeros(2, 128), torch.zeros(2), torch.zeros(128, 2), torch.zeros(128))
    biased = {"clip_l": ContextOperator(dense=torch.zeros(192, 192), bias=torch.ones(192))}
    for layout in ("ComfyUI LoRA", "full model"):
        for beside in (replace(eraser, modules={"mid_block.x": network}), replace(eraser, context=biased)):
            with pytest.raises(SettingError, match="changed weights cannot do"):
                _save(demo, beside, layout)
        with pytest.raises(SettingError, match="carries this eraser"):
            _save(erased, eraser, layout)
        with pytest.raises(SettingError, match="Connect the CLIP"):
            _save(demo, replace(eraser, text_encoder={FC1: WeightEdit(dense=torch.zeros(768, 192))}), layout, clip=None)
        with pytest.raises(SettingError, match="needs the model"):
            _save(demo, eraser, layout, model=None)
        with pytest.raises(EraserFileError, match="leads out"):
            _save(demo, eraser, layout, name="../out")


def test_a_full_model_holds_the_eraser_in_its_weights(demo: Any, mixed: Eraser) -> None:
    from lethe.nodes.demo import LetheDemoModel

    _, name, summary = _save(demo, mixed, "full model", name="merged", vae=demo[2])
    assert "CLIP, VAE" in summary
    path = _folder("checkpoints") / name
    assert [file.name for file in path.parent.iterdir() if file.name.startswith((".lethe", "merged"))] == [name]
    found = load_file(path)
    assert any(key.startswith("first_stage_model.") for key in found)
    fresh = LetheDemoModel.execute().result
    weights = {key: value for key, value in found.items() if key.startswith("model.diffusion_model.")}
    fresh[0].model.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()}, strict=False)
    text = {key: value for key, value in found.items() if key.startswith("cond_stage_model.")}
    renamed = {key.replace("cond_stage_model", "clip_l"): value for key, value in text.items()}
    fresh[1].cond_stage_model.load_state_dict(renamed, strict=False)
    assert len(weights) > 100
    assert len(text) > 20
    assert _far(_sample(*fresh[:2]), _apply(demo, mixed)) < 1e-5
    back = _import(demo, f"checkpoints/{name}")
    assert back.recipe.method == "imported: checkpoint"
    assert set(back.text_encoder) == {FC1}
    assert CONV in back.adapters
    assert _far(_apply(demo, back), _apply(demo, mixed)) < 1e-5


def test_the_bar_follows_a_file_that_grows(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's writer tells nothing, and gives its file the whole size at first."""
    import comfy.utils
    from lethe.nodes.host.runtime import filling

    told: list[float] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, whole, *_, **__: told.append(done / whole))
    with filling(tmp_path, 8 << 20), (tmp_path / "part").open("wb") as file:
        file.truncate(8 << 20)
        for _ in range(8):
            file.write(b"x" * (1 << 20))
            file.flush()
            time.sleep(0.25)
    assert sum(0 < part < 1 for part in told) >= 4
    assert told[-1] == 1


@pytest.mark.parametrize("how", ["full disk", "interrupt"])
def test_a_full_model_is_written_whole_or_not_at_all(
    demo: Any, mixed: Eraser, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    import comfy.utils

    def interrupted(*_: object, **__: object) -> None:
        comfy.model_management.interrupt_current_processing()
        written(*_, **__)

    def full(_: object, path: str, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    written = comfy.utils.save_torch_file
    monkeypatch.setattr(comfy.utils, "save_torch_file", full if how == "full disk" else interrupted)
    expected = EraserFileError if how == "full disk" else comfy.model_management.InterruptProcessingException
    before = set(_folder("checkpoints").iterdir())
    with pytest.raises(expected):
        _save(demo, mixed, "full model", name="never")
    assert set(_folder("checkpoints").iterdir()) == before


@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", "conditioner.embedders.1.model."])
def test_text_encoders_as_the_host_writes_them_for_other_families(comfy: Any, tmp_path: Path, prefix: str) -> None:
    """SD 2 and SD XL: queries, keys and values of the text encoder are joined in a checkpoint."""
    from comfy.diffusers_convert import convert_text_enc_state_dict_v20

    base = tiny_base()
    factors = thin_edit(base, (TEXT, FC1), (TEXT, FC1.replace("mlp.fc1", "self_attn.k_proj")))
    text = {f"clip_g.transformer.{name}": value for name, value in full_text(base, merged(base, factors)).items()}
    text |= {"clip_g.transformer.text_projection.weight": torch.ones(4, 4), "clip_g.logit_scale": torch.ones(())}
    written = convert_text_enc_state_dict_v20(text, "clip_g")
    renamed = {key.replace("clip_g.", prefix, 1): value.contiguous() for key, value in written.items()}
    unet = {f"model.diffusion_model.{base.native[VALUE]}": base.read((ADAPTERS, VALUE)).clone()}
    save_file(renamed | unet, tmp_path / "sdxl.safetensors")
    found = import_eraser(tmp_path / "sdxl.safetensors", base)
    assert not found.adapters
    assert set(found.text_encoder) == {name for _, name in factors}
    for owner, (up, down) in factors.items():
        assert _far(found.text_encoder[owner[1]].delta(base.shapes[owner]), up @ down) < 1e-6
    save_file(renamed | {f"{prefix}more.weight": torch.ones(2)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(EraserFileError, match=r"more\.weight|no known layout"):
        import_eraser(tmp_path / "sdxl.safetensors", base)


def test_a_model_with_an_earlier_eraser(erased: Any, mixed: Eraser) -> None:
    """A hook stays one beside a LoRA, and would be missing from a full model."""
    import nodes

    draw = torch.Generator().manual_seed(2)
    operator = ContextOperator(
        down=torch.randn(2, 192, generator=draw) / 14, up=torch.randn(192, 2, generator=draw) / 28
    )
    other = replace(mixed, context={"clip_l": operator}, text_encoder={})
    with pytest.raises(SettingError, match="as a hook"):
        _save(erased, other, "full model", name="hooked")
    name = _save(erased, other, "ComfyUI LoRA", name="second")[1]
    loaded = nodes.LoraLoader().load_lora(erased[0], erased[1], name, 1.0, 1.0)
    assert _far(_sample(*loaded), _apply(erased, other)) < 1e-4
    assert _far(_sample(*erased[:2]), _apply(erased, other)) > 1e-2
    patched = nodes.LoraLoader().load_lora(erased[0], erased[1], name, 1.0, 1.0)
    again = nodes.LoraLoader().load_lora(*patched, _save(patched, other, "ComfyUI LoRA")[1], 1.0, 1.0)
    assert _far(_sample(*again), _apply(patched, other)) < 1e-4


def test_differences_are_to_the_own_weights_of_a_model_with_a_lora(demo: Any, mixed: Eraser) -> None:
    from lethe.nodes.host.exchange import base_of

    import nodes

    edits = replace(mixed, context={}, text_encoder={})
    before = base_of(demo[0], demo[1], own=True).read((ADAPTERS, CONV))
    value = before + edits.adapters[CONV].delta((128, 128, 1, 1))
    save_file({CONV: value}, _folder("diffusion_models") / "esd.safetensors")
    name = _save(demo, mixed, "ComfyUI LoRA")[1]
    patched = nodes.LoraLoader().load_lora(demo[0], demo[1], name, 1.0, 1.0)
    for host in (demo, patched):
        found = _import(host, "diffusion_models/esd.safetensors").adapters[CONV]
        assert _far(found.delta((128, 128, 1, 1)), edits.adapters[CONV].delta((128, 128, 1, 1))) < 1e-5


def test_only_files_of_the_hosts_folders_are_read(demo: Any, comfy: Any) -> None:
    outside = comfy.base / "out.safetensors"
    (comfy.base / "models" / "lethe").mkdir(parents=True, exist_ok=True)
    save_file({CONV: torch.zeros(128, 128, 1, 1)}, outside)
    up = "/".join([".."] * len(comfy.base.parts))
    for name in (
        f"loras/{outside}",
        f"lethe/../../{outside.name}",
        f"loras/{up}{outside}",
        str(outside),
        "input/x.png",
        "loras/../none",
        "",
    ):
        with pytest.raises(EraserFileError, match=r"There is no file|leads out"):
            _import(demo, name)


def test_an_eraser_of_the_packs_own_is_read_too(demo: Any, erased: Any) -> None:
    from lethe.nodes.files import LetheSave

    LetheSave.execute(erased[2], "own", True)
    assert _import(demo, "lethe/own.safetensors").recipe.names == ("ball",)
    wrong = replace(erased[2], recipe=replace(erased[2].recipe, family="sd1"))
    LetheSave.execute(wrong, "own", True)
    with pytest.raises(FamilyError, match="sd1"):
        _import(demo, "lethe/own.safetensors")


def test_graphs_from_before_the_new_inputs_still_run(client: Any) -> None:
    options = client.object_info("LetheErase")["LetheErase"]["input"]["required"]["method"][1]["options"]
    settings = next(option["inputs"]["required"] for option in options if option["key"] == "uce")
    method = {f"method.{name}": spec[1]["default"] for name, spec in settings.items()} | {"method": "uce"}
    concept = {"text": "ball", "replacement": "box", "synonyms": "", "weight": 1.0}
    model = {"model": ["1", 0], "clip": ["1", 1]}
    saved = {"eraser": ["3", 2], "overwrite": True}
    graph = {
        "1": {"class_type": "LetheDemoModel", "inputs": {}},
        "2": {"class_type": "LetheConcept", "inputs": concept},
        "3": {
            "class_type": "LetheErase",
            "inputs": {**model, **method, "concepts": ["2", 0], "strength": 1.0, "form": "hook", "pooled": False},
        },
        "4": {"class_type": "LetheSave", "inputs": {**saved, "name": "old"}},
        "5": {
            "class_type": "LetheSave",
            "inputs": {**saved, **model, "name": "new", "layout": "kohya LoRA", "layout.rank": 0},
        },
        "6": {"class_type": "LetheInspect", "inputs": {"eraser": ["4", 0]}},
        "7": {"class_type": "LetheSave", "inputs": {**saved, "name": "plain", "layout": "eraser"}},
    }
    assert "Method: uce" in client.run(graph)["6"]["text"][0]
    assert (
        "loras/new.safetensors"
        in client.object_info("LetheImport")["LetheImport"]["input"]["required"]["file"][1]["options"]
    )


def test_what_was_measured_of_an_eraser_goes_into_its_file(demo, erased) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.files import LetheLoad

    figure = Interval(0.9, 0.8, 0.95, 40)
    report = Report(EVALUATION, "uce", ("ball",), {"erased": figure, "kept": figure})
    assert _save(demo, erased[2], "eraser", name="measured", report=(report,))[0].figures["kept"] == (
        0.9,
        0.8,
        0.95,
    )
    assert LetheLoad.execute("measured").result[0].figures == {"erased": (0.9, 0.8, 0.95), "kept": (0.9, 0.8, 0.95)}
    with pytest.raises(ReportError, match="fish"):
        _save(demo, erased[2], "eraser", name="other", report=(replace(report, concepts=("fish",)),))
    with pytest.raises(EraserFileError):
        LetheLoad.execute("other")
