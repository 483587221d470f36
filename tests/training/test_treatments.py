"""What training scripts do to a model, done to mixtures with LoRA on what moeify registers: they compute the same."""

import copy
import warnings

import peft
import pytest
import torch
import transformers

from moeify.modeling.moe_families import FAMILIES, moe_type
from tests.modeling.tiny_models import dense_model, inputs, upcycle, vary_experts
from tests.tiny import sizes_of

HEADS = ("BertForMaskedLM", "GPT2LMHeadModel")


def adapted(head):
    """A mixture with LoRA on attention and routers that does something."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2's weights are transposed
        model = peft.get_peft_model(vary_experts(upcycle(dense_model(head))), peft.LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model.eval()


def checkpointed(model):
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    return model.train()


TREATMENTS = {
    "half": (lambda model: model.half(), 2e-2),
    "bfloat16": (lambda model: model.to(torch.bfloat16), 1e-1),
    "compile": (lambda model: torch.compile(model, backend="aot_eager"), 1e-4),
    "gradient checkpointing": (checkpointed, 1e-4),
    "merge and unload": (lambda model: model.merge_and_unload(), 1e-4),
    "unload": (lambda model: model.unload(), None),
    "deep copy": (copy.deepcopy, 1e-6),
}


# Compiling a GPT-2 takes seconds, and tests/modeling/test_tracing.py does.
CELLS = [(head, name) for head in HEADS for name in TREATMENTS if (head, name) != ("GPT2LMHeadModel", "compile")]


@pytest.mark.parametrize(("head", "treatment"), CELLS)
@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_are_the_same(head, treatment):
    torch.compiler.reset()
    model, batch = adapted(head), inputs(head, labels=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    treat, tolerance = TREATMENTS[treatment]
    expected = model(**batch, output_router_logits=True)
    expected.loss.backward()
    gradients = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients and all("lora_" in name for name in gradients)
    model.zero_grad()
    if tolerance is None:  # back to the mixture before the adapters
        plain = vary_experts(upcycle(dense_model(head)))
        found, expected = treat(model)(**batch), plain(**batch)
        assert torch.equal(found.logits, expected.logits)
        return
    treated = treat(model)
    found = treated(**batch, output_router_logits=True)
    scale = expected.logits.abs().max().item()
    assert (found.logits.float() - expected.logits).abs().max().item() <= tolerance * scale
    assert found.aux_loss.item() == pytest.approx(expected.aux_loss.item(), rel=tolerance)
    if treatment == "merge and unload":
        assert not [name for name, _ in treated.named_parameters() if "lora" in name]
        return
    found.loss.backward()
    now = {name.removeprefix("_orig_mod."): p.grad for name, p in treated.named_parameters() if p.grad is not None}
    assert now.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (now[name].float() - gradient).norm() <= max(5 * tolerance, 1e-4) * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("dense_type", FAMILIES)
def test_lora_without_target_modules_finds_attention_and_routers(dense_type):
    """In every type of moeify's own, by the names that stand with the type."""
    config = transformers.AutoConfig.for_model(moe_type(dense_type), **sizes_of(dense_type), num_experts=4)
    model = transformers.AutoModel.from_config(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2))
    found = {
        name.split(".lora_A.")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name
    }
    assert found == {*FAMILIES[dense_type].adapted, "router"}
