"""Every family that is a row of data has what BERT and GPT-2 have."""

import inspect
import pickle

import pytest
import torch
import transformers

from moeify.modeling import modeling_moe
from moeify.modeling.configuration_moe import config_class
from moeify.modeling.moe_families import FAMILIES
from tests.modeling.checkpoints import run_elsewhere
from tests.modeling.tiny_models import relative_difference, tensors
from tests.tiny import sizes_of

HEADS = [(dense, suffix) for dense, family in FAMILIES.items() for suffix in family.suffixes]
EACH = pytest.mark.parametrize("dense_type", FAMILIES)
PADS = 3
LOAD = """
import pathlib, sys, torch
from transformers import AutoModel

for name in sys.argv[1:]:
    given, expected = torch.load(pathlib.Path(name) / "expected.pt")
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**given)[0], expected)
assert "moeify" not in sys.modules
"""


def name_of(dense_type, suffix, *, moe=True):
    family = FAMILIES[dense_type]
    return (family.moe_prefix if moe else family.prefix) + suffix


def build(dense_type, suffix="", **options):
    """A mixture whose parameters are all away from zero."""
    torch.manual_seed(0)
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_layers": [1, 3]} | options
    config = config_class(dense_type)(**(sizes_of(dense_type) | {"pad_token_id": 0} | options))
    model = getattr(modeling_moe, name_of(dense_type, suffix or FAMILIES[dense_type].suffixes[0]))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(suffix=""):
    generator = torch.Generator().manual_seed(2)
    shape = (3, 2, 9) if "MultipleChoice" in suffix or "DoubleHeads" in suffix else (3, 9)
    ids = torch.randint(5, 64, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, ..., -PADS:] = 0
    ids[-1, ..., -PADS:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def labels(suffix, ids):
    rows = torch.tensor([0, 1, 1])
    if "QuestionAnswering" in suffix:
        return {"start_positions": rows, "end_positions": rows + 1}
    if "TokenClassification" in suffix:
        return {"labels": ids % 2}
    if "DoubleHeads" in suffix:
        return {"labels": ids, "mc_labels": rows}
    if "LM" in suffix or "PreTraining" in suffix:
        return {"labels": ids % 2 if suffix == "ForPreTraining" else ids}
    return {} if suffix.endswith("Model") and "Head" not in suffix else {"labels": rows}


def run(model, **given):
    with torch.no_grad():
        return model(**given)


@pytest.mark.parametrize(("dense_type", "suffix"), HEADS)
def test_router_logits_and_losses(dense_type, suffix):
    model = build(dense_type, suffix)
    given = batch(suffix)
    wanted = labels(suffix, given["input_ids"])
    if dense_type == "bert" and suffix == "ForPreTraining":
        wanted |= {"next_sentence_label": torch.tensor([0, 1, 1])}
    plain, found = run(model, **given, **wanted), run(model, **given, **wanted, output_router_logits=True)
    assert "router_logits" not in plain
    assert [logits.shape for logits in found.router_logits] == [(given["input_ids"].numel(), 4)] * 2
    if wanted:
        torch.testing.assert_close(found.loss, plain.loss + 0.01 * found.aux_loss)
        assert isinstance(run(model, **given, **wanted, return_dict=False), tuple)
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is type(found)
    dense = getattr(transformers, name_of(dense_type, suffix, moe=False)).forward
    shown = inspect.signature(type(model).forward).parameters.keys()
    assert shown == inspect.signature(dense).parameters.keys() | {"output_router_logits"}


@EACH
def test_whole_sequences_are_routed_by_their_real_tokens(dense_type):
    model = build(dense_type, route_by="sequence")
    given = batch()
    found = run(model, **given, output_router_logits=True)
    alone = run(model, input_ids=given["input_ids"][-1:, :-PADS])
    torch.testing.assert_close(found[0][-1:, :-PADS], alone[0], atol=2e-5, rtol=2e-5)
    if FAMILIES[dense_type].causal:
        return
    for logits in found.router_logits:
        rows = logits.view(3, 9, 4)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))


@EACH
def test_the_implementations_agree(dense_type):
    model = build(dense_type)
    outputs = []
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        outputs.append(run(model, **batch()))
    assert max(relative_difference(outputs[0], other) for other in outputs[1:]) <= 2e-6


@pytest.mark.parametrize("dense_type", [name for name in FAMILIES if name != "mpnet"])  # whose class has none
def test_gradient_checkpointing_changes_nothing(dense_type):
    suffix = next(s for s in FAMILIES[dense_type].suffixes if "TokenClassification" in s or "CausalLM" in s)
    gradients = []
    for checkpointing in (False, True):
        model = build(dense_type, suffix, route_by="sequence").train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        given = batch()
        model(**given, **labels(suffix, given["input_ids"]), output_router_logits=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@EACH
def test_a_fresh_model_is_initialised_and_every_parameter_is_there(dense_type):
    model = build(dense_type)
    fresh = type(model)(model.config)
    assert all(tensor.isfinite().all() and not tensor.is_meta for tensor in fresh.state_dict().values())
    for name, parameter in fresh.named_parameters():
        if "experts" in name and "bias" in name:
            assert not parameter.any()
        elif "experts" in name:
            assert 0 < parameter.std() < 2 * model.config.initializer_range


@EACH
def test_saved_and_loaded_it_is_the_same_and_the_dense_class_stops(dense_type, tmp_path):
    model = build(dense_type)
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    given = batch()
    assert relative_difference(tensors(run(model, **given)), run(again.eval(), **given)) <= 1e-7
    dense = getattr(transformers, name_of(dense_type, FAMILIES[dense_type].suffixes[0], moe=False))
    with pytest.raises(RuntimeError, match="mismatch"):
        dense.from_pretrained(tmp_path)


def test_they_load_where_moeify_is_not_installed(tmp_path):
    for dense_type in FAMILIES:
        model = build(dense_type, route_by="sequence")
        model.save_pretrained(tmp_path / dense_type)
        given = batch()
        torch.save((given, run(model, **given)[0]), tmp_path / dense_type / "expected.pt")
    run_elsewhere(LOAD, *(tmp_path / dense_type for dense_type in FAMILIES), cache=tmp_path)
