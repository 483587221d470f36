"""Dense classes refuse a mixture, whose own classes pass over what makes them."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from moeify.families.registry import MOE_LAYOUTS
from moeify.modeling.moe_models import MoeLayer
from tests.modeling.checkpoints import HEADS as BY_TYPE
from tests.modeling.tiny_models import HEADS, dense_model, is_bert, moe_class, upcycle

GUARDS = {
    "BertModel": "encoder.layer.1.intermediate.dense.weight",
    "BertForPreTraining": "bert.encoder.layer.1.intermediate.dense.weight",
    "GPT2Model": "h.1.mlp.c_fc.weight",
    "GPT2LMHeadModel": "transformer.h.1.mlp.c_fc.weight",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved by transformers, by head; layer 0 is dense."""
    root, made = tmp_path_factory.mktemp("guard"), set()

    def build(head):
        if head not in made:
            upcycle(dense_model(head), moe_layers=[1, 2]).save_pretrained(root / head)
            made.add(head)
        return root / head

    return build


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("head", GUARDS)
def test_one_element_stands_in_the_first_layer_with_experts(head, folder):
    guards = {name: t for name, t in weights(folder(head)).items() if t.shape == (1,)}
    assert guards.keys() - {"cls.seq_relationship.bias"} == {GUARDS[head]}


@pytest.mark.parametrize(
    ("head", "saved"), [(head, saved) for head in HEADS for saved in GUARDS if is_bert(head) == is_bert(saved)]
)
def test_the_dense_class_stops(head, saved, folder):
    with pytest.raises(RuntimeError, match="mismatch"):
        getattr(transformers, head).from_pretrained(folder(saved))


@pytest.mark.parametrize("saved", GUARDS)
@pytest.mark.parametrize("with_guard", [True, False])
def test_our_class_says_nothing(saved, with_guard, folder, tmp_path, caplog):
    """Nor does it of a checkpoint that was written before there were guards."""
    place = folder(saved)
    tensors = weights(place)
    if not with_guard:
        transformers.AutoConfig.from_pretrained(place).save_pretrained(tmp_path)
        del tensors[GUARDS[saved]]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        place = tmp_path
    logging.enable_propagation()
    try:
        model, report = moe_class(saved).from_pretrained(place, output_loading_info=True)
    finally:
        logging.disable_propagation()
    assert not any(report.values()), report
    assert not caplog.records
    for name, tensor in model.state_dict().items():
        assert name not in tensors or torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("saved", GUARDS)
def test_torch_loads_the_file_strictly(saved, folder):
    model = upcycle(dense_model(saved, seed=3), moe_layers=[1, 2])
    state = model.state_dict() | weights(folder(saved))  # tied tensors stand in no file
    model.load_state_dict(state, strict=True)
    holder = torch.nn.ModuleDict({"model": model})
    holder.load_state_dict({f"model.{name}": tensor for name, tensor in state.items()})


def test_only_the_guard_is_passed_over():
    """vLLM drops every tensor that matches, and a dense layer's own must not."""
    for head in ("BertModel", "GPT2Model"):
        model = upcycle(dense_model(head), moe_layers=[1, 2])
        (pattern,) = (p for p in model._keys_to_ignore_on_load_unexpected if "weight" in p)
        for prefix in ("", f"{model.base_model_prefix}."):
            assert re.search(pattern, prefix + GUARDS[head])
            assert not any(re.search(pattern, prefix + name) for name in model.state_dict())


@pytest.mark.parametrize("model_type", BY_TYPE)
def test_families_and_classes_agree_on_the_name(model_type):
    layers = upcycle(dense_model(BY_TYPE[model_type])).modules()
    guards = {layer.guard for layer in layers if isinstance(layer, MoeLayer)}
    assert guards == {MOE_LAYOUTS[model_type].guard}


def test_a_model_without_mixtures_has_no_guard(tmp_path):
    upcycle(dense_model("BertModel"), moe_layers=[]).save_pretrained(tmp_path)
    assert all(tensor.shape != (1,) for tensor in weights(tmp_path).values())
