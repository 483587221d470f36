"""Scores by brute force: every expert on every token, from weights and formulas alone."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.pruning.masking import router_modules


def recorded_inputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """What the routers, and with them the experts, of each layer read, [N, H]."""
    seen: dict[int, Tensor] = {}
    handles = [
        router.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.update({layer: args[0].flatten(0, -2).clone()})
        )
        for layer, router in router_modules(model).items()
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def weight_of(model_type: str, router: nn.Module, config: Any, x: Tensor, top_k: int) -> Tensor:
    """What multiplies each expert's output, [N, E], 0 where it is not chosen; float64."""
    logits = x.double() @ router.weight.detach().double().T
    if getattr(router, "bias", None) is not None:
        logits = logits + router.bias.detach().double()
    if model_type == "deepseek_v3":
        scores = logits.sigmoid()
        choice = scores + router.e_score_correction_bias.double()
        groups = choice.view(len(x), 2, -1).topk(2).values.sum(-1).argmax(-1)
        outside = torch.arange(choice.shape[1]) // (choice.shape[1] // 2) != groups[:, None]
        chosen = choice.masked_fill(outside, -torch.inf).topk(top_k).indices
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * config.routed_scaling_factor
    elif model_type == "llama4_text":
        weights, chosen = logits.sigmoid().topk(top_k)
    else:
        scores = logits.softmax(-1)
        weights, chosen = scores.topk(top_k)
        if model_type != "qwen2_moe":
            weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, chosen, weights)


def output_of(model_type: str, experts: nn.Module, expert: int, x: Tensor) -> Tensor:
    """f_j(x) in float64, [N, H]."""
    p = {name: tensor[expert].detach().double() for name, tensor in experts.named_parameters()}
    x = x.double()
    if model_type in ("bert_moe", "gpt2_moe"):
        if model_type == "bert_moe":
            inner = nn.functional.gelu(x @ p["up_proj"].T + p["up_proj_bias"])
            return inner @ p["down_proj"].T + p["down_proj_bias"]
        inner = nn.functional.gelu(x @ p["up_proj"] + p["up_proj_bias"], approximate="tanh")
        return inner @ p["down_proj"] + p["down_proj_bias"]
    if model_type == "gpt_oss":
        both = x @ p["gate_up_proj"] + p["gate_up_proj_bias"]
        gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        return ((up + 1) * gate * (1.702 * gate).sigmoid()) @ p["down_proj"] + p["down_proj_bias"]
    if model_type == "llama4_text":
        gate, up = (x @ p["gate_up_proj"]).chunk(2, -1)
        return (nn.functional.silu(gate) * up) @ p["down_proj"]
    gate, up = (x @ p["gate_up_proj"].T).chunk(2, -1)
    return (nn.functional.silu(gate) * up) @ p["down_proj"].T


def brute_force(
    model_type: str, model: PreTrainedModel, inputs: dict[str, Tensor], top_k: int
) -> dict[int, dict[str, Tensor]]:
    """Every criterion for every expert of every layer; padding left out."""
    real = inputs["attention_mask"].flatten().bool()
    result = {}
    modules = {
        next(int(part) for part in name.split(".") if part.isdigit()): module
        for name, module in model.named_modules()
        if name.endswith(".experts")
    }
    routers = router_modules(model)
    for layer, x in recorded_inputs(model, inputs).items():
        x = x[real]
        g = weight_of(model_type, routers[layer], model.config, x, top_k)
        inside = model_type == "llama4_text"  # the weights multiply the inputs
        outputs = [
            output_of(model_type, modules[layer], j, x * g[:, j : j + 1] if inside else x) for j in range(g.shape[1])
        ]
        norms = torch.stack([f.norm(dim=-1) for f in outputs], dim=1)
        added = norms if inside else g * norms
        routed = (g > 0).double()
        result[layer] = {
            "frequency": routed.sum(0),
            "gate": g.sum(0),
            "ean": (norms * routed).sum(0),
            "reap": (added * routed).sum(0) / routed.sum(0).clamp(min=1),
            "max_norm": (norms * routed).max(0).values,
        }
    return result
