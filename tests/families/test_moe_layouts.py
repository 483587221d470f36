"""Every MoE layout against models that transformers saves: names, counts, shapes, orientation."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moeify.families.mixture_places import layout_prefix
from moeify.families.moe_layout import ExpertTensor
from moeify.families.registry import MOE_LAYOUTS, moe_layout, vocabulary_size
from moeify.families.values import resolve_shape
from moeify.inspection.inspect import inspect
from moeify.routing.loading import load_model
from tests.families.published_models import EXPERTS, MODEL_TYPES, OWN, TEXTS, active_parameters, save, tiny
from tests.tiny import outer_type, texts_of


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_counts_equal_the_models_own(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(model_type, tied=tied)
    report = inspect(save(model, tmp_path))
    assert report.problems == []
    assert report.kind == "moe"
    assert report.params_total == sum(p.numel() for p in model.parameters())
    assert report.params_active == active_parameters(model)
    assert report.num_experts == EXPERTS
    assert all(layer.num_experts == EXPERTS for layer in report.layers)
    assert report.tied_embeddings is tied


def test_every_model_type_is_tested() -> None:
    assert set(MODEL_TYPES) == {name for name, layout in MOE_LAYOUTS.items() if layout.unloadable is None}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_moe_layers_and_routing_rule_are_the_models(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type, tied=False)
    report = inspect(save(model, tmp_path))
    found = {
        int(match[1])
        for name, _ in model.named_parameters()
        if (match := re.search(r"(?:layers?|h)\.(\d+)\..*experts\.", name))
    }
    assert set(report.moe_layers) == found
    config = getattr(model.config, "text_config", None) or model.config
    assert report.top_k == config.num_experts_per_tok


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - {*TEXTS}))
def test_roles_and_neuron_axis(model_type: str, tmp_path: Path) -> None:
    """Assembled by role and orientation, the stored experts are the loaded model's."""
    model = tiny(model_type, tied=False)
    folder = save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    layout = moe_layout(config, stored)
    layer = layout.moe_layers(config)[-1]
    prefix = layout_prefix(layout, stored) + layout.layer.format(layer=layer)
    dims = layout.dims(config)
    module = next(m for name, m in model.named_modules() if re.search(rf"\.{layer}\..*experts$", name))
    transposed = bool(getattr(module, "is_transposed", False)) or model_type == "llama4_text"
    for expert in range(EXPERTS):
        for spec in layout.experts:
            tensor = stored[prefix + spec.name.format(expert=expert)]
            one = tensor[expert] if spec.fused else tensor
            assert tuple(one.shape) == resolve_shape(spec.shape, dims)
            for role, part in zip(spec.roles, _split(one, spec), strict=True):
                assert torch.equal(part, _loaded(module, role, expert, model_type, transposed))


def _split(one: torch.Tensor, spec: ExpertTensor) -> tuple[torch.Tensor, ...]:
    """The roles of one expert, with the neurons along axis 0."""
    axis = spec.neuron_axis
    if axis is None:
        return (one,)
    rows = one.movedim(axis, 0)
    if spec.interleaved:
        return tuple(rows[start :: len(spec.roles)] for start in range(len(spec.roles)))
    return rows.chunk(len(spec.roles))


def _loaded(module: torch.nn.Module, role: str, expert: int, model_type: str, transposed: bool) -> torch.Tensor:
    """The same role out of the loaded module, neurons along axis 0, by its forward pass' rules."""
    kind, _, bias = role.partition("_")
    if model_type in OWN:
        name = "down_proj" if kind == "down" else module.up_name
        one = getattr(module, f"{name}_bias" if bias else name)[expert]
        if not bias and (kind == "down") != transposed:
            one = one.T
        return one.chunk(2)[kind == "up"] if module.has_gate and kind != "down" else one
    if model_type == "nemotron_h":
        one = getattr(module, f"{kind}_proj")[expert]
        return one if kind == "up" else one.T
    name = "down_proj" if kind == "down" else "gate_up_proj"
    one = getattr(module, f"{name}_bias" if bias else name)[expert]
    if kind == "down":
        return one if bias or transposed else one.T
    one = one if bias or not transposed else one.T
    if model_type == "gpt_oss":
        return one[0 if kind == "gate" else 1 :: 2]
    return one.chunk(2)[0 if kind == "gate" else 1]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_names_in_memory_are_found_too(model_type: str, tmp_path: Path) -> None:
    """What ``save_original_format=False`` writes counts, loads and checks like the usual form."""
    model = tiny(model_type, tied=False)
    usual = inspect(save(model, tmp_path / "usual"))
    model.save_pretrained(tmp_path / "loaded", save_original_format=False)
    report = inspect(tmp_path / "loaded")
    assert report.problems == []
    assert (report.params_total, report.params_active) == (usual.params_total, usual.params_active)
    assert report.parts == usual.parts
    loaded = load_model(tmp_path / "loaded").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_vocabulary_is_the_models(model_type: str) -> None:
    model = tiny(model_type, tied=False)
    config = model.config.to_dict()
    embeddings = model.get_input_embeddings().weight
    assert vocabulary_size(config) == len(embeddings)
    for place in (config, config.get("text_config", {})):
        place.pop("vocab_size", None)
    own = (
        type(model.config).from_dict({"model_type": outer_type(model_type), **texts_of(model_type)}).get_text_config()
    )
    assert vocabulary_size(config) == own.vocab_size
