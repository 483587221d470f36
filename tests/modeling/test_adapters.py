"""PEFT adapters on attention, router and experts."""

import peft
import pytest
import torch

from tests.modeling.tiny_models import dense_model, inputs, upcycle, vary_experts

TARGETS = {"BertForMaskedLM": ["query", "value", "router"], "GPT2LMHeadModel": ["c_attn", "router"]}


@pytest.mark.parametrize("head", TARGETS)
def test_lora_on_attention_and_router(head):
    model = vary_experts(upcycle(dense_model(head)))
    batch = inputs(head, labels=True)
    with torch.no_grad():
        expected = model(**batch, output_router_logits=True)
    config = peft.LoraConfig(r=2, target_modules=TARGETS[head], init_lora_weights=True)
    adapted = peft.get_peft_model(model, config).eval()
    found = adapted(**batch, output_router_logits=True)
    torch.testing.assert_close(found.logits, expected.logits)
    # One record for each layer: the adapted logits, not those of the adapter's inner layers.
    assert [logits.shape for logits in found.router_logits] == [(27, 4)] * 3
    found.loss.backward()
    trained = [name for name, p in adapted.named_parameters() if p.grad is not None]
    assert all("lora_" in name for name in trained)
    assert sum("router" in name for name in trained) == 6
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "router.lora_B" in name:
                parameter.fill_(0.5)
        moved = adapted(**batch, output_router_logits=True)
        difference = (moved.router_logits[0] - expected.router_logits[0]).abs().max()
        merged = adapted.merge_and_unload()(**batch)
    assert difference > 0.1
    torch.testing.assert_close(merged.logits, moved.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", TARGETS)
def test_lora_on_the_fused_experts(head):
    model = vary_experts(upcycle(dense_model(head)))
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.up_proj", "experts.down_proj"])
    adapted = peft.get_peft_model(model, config).eval()
    adapted(**inputs(head, labels=True)).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
