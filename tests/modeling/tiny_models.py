"""Tiny random BERT and GPT-2 models, and an upcycling of their state dicts in a few lines.

It shares no code with moeify's own converter, so that the two check one another.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig, GPT2Config, PreTrainedModel

from moeify.modeling import modeling_moe
from moeify.modeling.configuration_moe import BertMoeConfig, GPT2MoeConfig
from moeify.modeling.moe_layers import TopKRouting

VOCABULARY, HIDDEN, LAYERS = 60, 32, 3

BERT_NAMES = {
    r"layer\.(\d+)\.intermediate\.dense\.weight": r"layer.\1.intermediate.experts.up_proj",
    r"layer\.(\d+)\.intermediate\.dense\.bias": r"layer.\1.intermediate.experts.up_proj_bias",
    r"layer\.(\d+)\.output\.dense\.weight": r"layer.\1.intermediate.experts.down_proj",
    r"layer\.(\d+)\.output\.dense\.bias": r"layer.\1.intermediate.experts.down_proj_bias",
}
GPT2_NAMES = {
    r"h\.(\d+)\.mlp\.c_fc\.weight": r"h.\1.mlp.experts.up_proj",
    r"h\.(\d+)\.mlp\.c_fc\.bias": r"h.\1.mlp.experts.up_proj_bias",
    r"h\.(\d+)\.mlp\.c_proj\.weight": r"h.\1.mlp.experts.down_proj",
    r"h\.(\d+)\.mlp\.c_proj\.bias": r"h.\1.mlp.experts.down_proj_bias",
}

BERT_HEADS = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertLMHeadModel": "AutoModelForCausalLM",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}
GPT2_HEADS = {
    "GPT2Model": "AutoModel",
    "GPT2LMHeadModel": "AutoModelForCausalLM",
    "GPT2DoubleHeadsModel": None,
    "GPT2ForSequenceClassification": "AutoModelForSequenceClassification",
    "GPT2ForTokenClassification": "AutoModelForTokenClassification",
    "GPT2ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
HEADS = [*BERT_HEADS, *GPT2_HEADS]
LM_HEADS = ["BertLMHeadModel", "GPT2LMHeadModel"]


def is_bert(head: str) -> bool:
    return head.startswith("Bert")


def moe_class(head: str) -> type[PreTrainedModel]:
    prefix = "Bert" if is_bert(head) else "GPT2"
    return getattr(modeling_moe, head.replace(prefix, f"{prefix}Moe", 1))


def dense_config(head: str, **options: Any) -> BertConfig | GPT2Config:
    if is_bert(head):
        options.setdefault("is_decoder", head == "BertLMHeadModel")
        keys = {
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
        }
        return BertConfig(**(keys | {"vocab_size": VOCABULARY} | options))
    keys = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 40}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return GPT2Config(**(keys | tokens | {"vocab_size": VOCABULARY} | options))


def dense_model(head: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = getattr(transformers, head)(dense_config(head, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than at initialisation, and nowhere zero: every term counts in comparisons.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def upcycle(
    dense: PreTrainedModel,
    *,
    num_experts: int = 4,
    top_k: int = 2,
    slices: int = 1,
    moe_layers: list[int] | None = None,
    router: Callable[..., Tensor] = torch.randn,
    **options: Any,
) -> PreTrainedModel:
    """The dense model with `num_experts` copies of each feed-forward network, or of each of its slices."""
    head = type(dense).__name__
    names = BERT_NAMES if is_bert(head) else GPT2_NAMES
    config_class = BertMoeConfig if is_bert(head) else GPT2MoeConfig
    keys = {k: v for k, v in dense.config.to_dict().items() if k != "model_type"}
    keys |= {"num_experts": num_experts * slices, "num_experts_per_tok": top_k * slices, "moe_layers": moe_layers}
    keys |= {"expert_slices": slices} if slices > 1 else {}
    model = moe_class(head)(config_class(**(keys | options))).to(dense.dtype)
    state: dict[str, Tensor] = {}
    for name, tensor in dense.state_dict().items():
        for pattern, replacement in names.items():
            found = re.search(pattern, name)
            if found and config_class.is_moe_layer(model.config, int(found[1])):
                name = re.sub(pattern, replacement, name)
                parts = _cut(name, tensor, slices, transposed=not is_bert(head))
                tensor = torch.stack([part for part in parts for _ in range(num_experts)])
                break
        state[name] = tensor
    for name, tensor in model.state_dict().items():
        if name.endswith("router.weight"):
            state[name] = router(*tensor.shape, dtype=tensor.dtype)
        elif ".routing." in name or ".nulls." in name:
            state[name] = tensor
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model.eval()


def _cut(name: str, tensor: Tensor, slices: int, *, transposed: bool) -> list[Tensor]:
    """The neurons of an experts' tensor in so many parts; all of them add the last bias."""
    if name.endswith("down_proj_bias"):
        return [tensor / slices] * slices
    last = name.endswith("down_proj") != transposed and tensor.ndim == 2
    return list(tensor.chunk(slices, dim=1 if last else 0))


def set_top_k(model: PreTrainedModel, top_k: int) -> PreTrainedModel:
    """Change K in place, which is much faster than building another model."""
    model.config.num_experts_per_tok = top_k
    for module in model.modules():
        if isinstance(module, TopKRouting):
            module.top_k = top_k
    return model


def vary_experts(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Make the experts differ, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name or name.endswith((".nulls.scale", ".nulls.constant")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(head: str, *, padded: bool = True, labels: bool = False, seed: int = 2) -> dict[str, Any]:
    """A batch for the head, B = 3 and S = 9, with the last row padded by three tokens."""
    generator = torch.Generator().manual_seed(seed)
    choices = "MultipleChoice" in head or "DoubleHeads" in head
    shape = (3, 2, 9) if choices else (3, 9)
    ids = torch.randint(2, VOCABULARY, shape, generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[-1, ..., -3:] = 0
        ids[-1, ..., -3:] = 0
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    return batch | (_labels(head, ids) if labels else {})


def _labels(head: str, ids: Tensor) -> dict[str, Tensor]:
    rows = torch.tensor([0, 1, 1])
    if "QuestionAnswering" in head:
        return {"start_positions": rows, "end_positions": rows + 1}
    if "ForPreTraining" in head:
        return {"labels": ids, "next_sentence_label": rows}
    if "DoubleHeads" in head:
        return {"labels": ids, "mc_labels": rows}
    if "TokenClassification" in head:
        return {"labels": ids % 2}
    if "LM" in head:
        return {"labels": ids}
    return {"labels": rows}


def tensors(output: Any) -> dict[str, Tensor]:
    """The plain tensors of a model's output, by name."""
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def relative_difference(dense: Any, moe: Any) -> float:
    """Largest over the outputs of max|moe - dense| / max|dense|."""
    expected, found = tensors(dense), tensors(moe)
    assert expected.keys() <= found.keys()
    return max(((found[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items())


ROUTERS = {"undecided": 0.0, "as drawn": 0.3, "certain": 30.0}
"""What the rows of drawn routers are multiplied by."""


@torch.no_grad()
def check_any_router(head: str, top_ks: Sequence[int], num_rows: int, **options: Any) -> None:
    """Hold a mixture made with ``options`` to the dense model under any router, in every implementation."""
    dense, batch = dense_model(head), inputs(head, labels=head not in ("BertModel", "GPT2Model"))
    expected, model = dense(**batch), upcycle(dense, num_experts=3, **options)
    rows = {name: p.clone() for name, p in model.named_parameters() if "router" in name}
    assert len(rows) == num_rows
    for scale in ROUTERS.values():
        for name, drawn in rows.items():
            model.get_parameter(name).copy_(scale * drawn)
        for implementation in ("eager", "batched_mm", "grouped_mm"):
            model.set_experts_implementation(implementation)
            for top_k in top_ks:
                found = set_top_k(model, top_k)(**batch)
                assert relative_difference(expected, found) <= 1e-6, (scale, implementation, top_k)
    if head in ("BertForMaskedLM", "GPT2LMHeadModel"):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert relative_difference(dense(**inputs(head)), compiled(**inputs(head))) <= 1e-6
