"""What the models return beside the dense outputs, and what training makes of it."""

import copy
import inspect
import pickle
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
import torch
import transformers

from moeify.modeling.moe_families import FAMILIES
from moeify.modeling.moe_layers import balance_loss, z_loss
from moeify.modeling.moe_outputs import _behind_padding
from tests.modeling.tiny_models import HEADS, dense_model, inputs, moe_class, set_top_k, upcycle, vary_experts

WITHOUT_LOSS = {"BertModel", "GPT2Model"}


def test_positions_that_vllm_counts_from_0_are_those_of_the_dense_class():
    """RoBERTa's begin behind the padding's; vLLM puts several texts in a row."""
    dense = transformers.XLMRobertaConfig(pad_token_id=1)
    dense._attn_implementation = "vllm"
    counted, own = torch.tensor([[0, 1, 2, 0, 1]]), torch.tensor([[2, 3, 4, 2, 3]])
    assert torch.equal(_behind_padding(dense, counted), own)
    assert torch.equal(_behind_padding(dense, own), own)
    dense._attn_implementation = "sdpa"
    assert torch.equal(_behind_padding(dense, counted), counted)
    behind = {name for name, family in FAMILIES.items() if family.behind_padding}
    counts = "create_position_ids_from_input_ids"
    assert behind == {name for name in FAMILIES if counts in inspect.getsource(_module_of(name))}


def _module_of(dense_type: str) -> Any:
    return inspect.getmodule(getattr(transformers, f"{FAMILIES[dense_type].prefix}Model"))


@pytest.fixture(scope="module")
def models() -> Any:
    """Head -> an upcycled model with differing experts, built once."""
    built = {}

    def get(head, **options):
        if head not in built:
            built[head] = vary_experts(upcycle(dense_model(head)))
        return copy.deepcopy(built[head])

    return get


@pytest.mark.parametrize("head", HEADS)
def test_router_logits_and_losses_of_every_head(head, models):
    model = models(head)
    labels = head not in WITHOUT_LOSS
    batch = inputs(head, labels=labels)
    with torch.no_grad():
        plain = model(**batch)
        found = model(**batch, output_router_logits=True)
    assert "router_logits" not in plain
    tokens = batch["input_ids"].numel()
    assert [logits.shape for logits in found.router_logits] == [(tokens, 4)] * 3
    mask = batch["attention_mask"].flatten()
    expected = balance_loss(router_logits=found.router_logits, top_k=2, mask=mask)
    torch.testing.assert_close(found.aux_loss, expected)
    if not labels:
        return
    torch.testing.assert_close(found.loss, plain.loss + 0.01 * expected)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_config_turns_the_losses_on(head, models):
    model = models(head)
    batch = inputs(head, labels=True)
    with torch.no_grad():
        plain = model(**batch)
        model.config.output_router_logits = True
        model.config.router_aux_loss_coef = 0.5
        model.config.router_z_loss_coef = 0.25
        found = model(**batch)
        without = model(**batch, output_router_logits=False)
    mask = batch["attention_mask"].flatten()
    expected = 0.5 * found.aux_loss + 0.25 * z_loss(router_logits=found.router_logits, mask=mask)
    torch.testing.assert_close(found.loss, plain.loss + expected)
    assert "aux_loss" not in without
    torch.testing.assert_close(without.loss, plain.loss)


def test_positional_arguments_and_tuples(models):
    batch = inputs("BertForMaskedLM", labels=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model = models("BertForMaskedLM")
    with torch.no_grad():
        expected = model(**batch, output_router_logits=True)
        found = model(ids, mask, labels=batch["labels"], output_router_logits=True, return_dict=False)
        model.config.return_dict = False
        configured = model(ids, mask)
    assert isinstance(found, tuple)
    assert isinstance(configured, tuple)
    # The dense fields come first, so code that unpacks a dense tuple goes on working.
    loss, logits, aux_loss, router_logits = found
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(aux_loss, expected.aux_loss)
    assert len(router_logits) == 3


@pytest.mark.parametrize("head", HEADS)
def test_signature_is_the_dense_one_and_one_more(head):
    parent = inspect.signature(getattr(transformers, head).forward).parameters
    found = inspect.signature(moe_class(head).forward).parameters
    assert found.keys() == parent.keys() | {"output_router_logits"}


def test_outputs_survive_pickle_and_pytree(models):
    with torch.no_grad():
        output = models("BertModel")(**inputs("BertModel"), output_router_logits=True)
    again = pickle.loads(pickle.dumps(output))
    assert torch.equal(again.router_logits[2], output.router_logits[2])
    leaves, spec = torch.utils._pytree.tree_flatten(output)
    assert type(torch.utils._pytree.tree_unflatten(leaves, spec)) is type(output)


def test_a_loss_for_the_choice_alone(models):
    head = "GPT2DoubleHeadsModel"
    batch = inputs(head, labels=True)
    del batch["labels"]
    model = models(head)
    with torch.no_grad():
        plain, found = model(**batch), model(**batch, output_router_logits=True)
    assert found.loss is None
    torch.testing.assert_close(found.mc_loss, plain.mc_loss + 0.01 * found.aux_loss)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_every_parameter_learns(head, top_k, models):
    model = set_top_k(models(head), top_k).train()
    model(**inputs(head, labels=True)).loss.backward()
    for name, parameter in model.named_parameters():
        if "router" in name or "experts" in name:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertLMHeadModel", "GPT2LMHeadModel"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(head, reentrant, models):
    gradients = []
    for checkpointing in (False, True):
        model = models(head).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = model.config.attn_pdrop = 0.0
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        # Reentrant checkpointing hides what is recorded inside it from autograd, in every model.
        output = model(**inputs(head, labels=True), output_router_logits=not reentrant)
        assert reentrant or len(output.router_logits) == 3
        output.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_a_fresh_model_is_initialised(head):
    model = moe_class(head)(upcycle(dense_model(head)).config)
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if "bias" in name and "experts" in name:
            assert not parameter.any(), name
        elif name.endswith(("up_proj", "router.weight")):
            assert parameter.std().item() == pytest.approx(std, rel=0.35), name
        elif name.endswith("down_proj"):
            depth = (2 * 3) ** 0.5 if head.startswith("GPT2") else 1
            assert parameter.std().item() == pytest.approx(std / depth, rel=0.1), name


def test_building_a_model_allocates_no_dense_network(monkeypatch):
    config = upcycle(dense_model("BertModel"), moe_layers=[0, 1]).config
    built = []
    original = torch.nn.Linear.__init__

    def counted(self, inner, outer, *args, **options):
        original(self, inner, outer, *args, **options)
        if not self.weight.is_meta:
            built.append((inner, outer))

    monkeypatch.setattr(torch.nn.Linear, "__init__", counted)
    model = moe_class("BertModel")(config)
    # Layer 2 alone is dense, and gets its memory later.
    assert (built.count((32, 48)), built.count((48, 32)), built.count((32, 4))) == (0, 0, 2)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_modules_that_must_stay_on_one_device():
    assert upcycle(dense_model("BertForMaskedLM"))._no_split_modules == {"BertEmbeddings", "BertLayer", "BertMoeLayer"}
    gpt2 = upcycle(dense_model("GPT2LMHeadModel"))
    assert gpt2._no_split_modules == {"GPT2Block", "GPT2MoeBlock"}


@pytest.mark.parametrize("head", HEADS)
def test_annotations_name_our_outputs_and_leave_the_dense_class_alone(head):
    forward = moe_class(head).forward
    returned = get_type_hints(forward)["return"]
    assert returned == inspect.signature(forward).return_annotation
    (output,) = set(get_args(returned)) - {tuple}
    assert {"router_logits", "aux_loss"} <= {field.name for field in fields(output)}
    dense = getattr(transformers, head).forward
    assert "output_router_logits" not in dense.__annotations__
    assert output not in get_args(dense.__annotations__["return"])
