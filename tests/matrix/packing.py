"""Quantised experts as their tools store them, packed here by hand from a model's own weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
_EXPERT = re.compile(r"(.*\.experts\.\d+\.\w+)\.weight")
_MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCK = 128

METHODS = {
    "mxfp4": "blocks of 32 four-bit values with one exponent, as gpt-oss is published",
    "fp8": "float8 with a scale for 128 x 128 weights, as DeepSeek-V3 is published",
    "gptq": "experts in `qweight`, `qzeros`, `scales` and `g_idx`",
    "awq": "experts in `qweight`, `qzeros` and `scales`, packed along the other axis",
    "compressed-tensors": "experts in `weight_packed`, `weight_scale` and `weight_shape`",
}
SIZES: dict[str, dict[str, Any]] = {"mxfp4": {"hidden_size": 32, "intermediate_size": 32}}
_CARRIERS = {
    "mxfp4": ("gpt_oss",),
    "fp8": ("deepseek_v3", "qwen3_moe", "qwen3_next", "glm4_moe", "minimax_m2"),
    "gptq": ("qwen3_moe", "mixtral"),
    "awq": ("qwen3_moe", "mixtral"),
    "compressed-tensors": ("qwen3_moe", "mixtral"),
}


def carriers(method: str) -> Callable[[str], bool]:
    """Whether a model type is published in this form."""
    return lambda model_type: model_type in _CARRIERS[method]


def save_packed(model: Any, folder: Path, method: str) -> None:
    """Save ``model`` with its experts packed by ``method``, and the config that says so."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors: Tensors = {}
    for name, tensor in load_file(path).items():
        tensors |= dict(_mxfp4(name, tensor) if method == "mxfp4" else _packed(name, tensor, method))
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _settings(method)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _settings(method: str) -> dict[str, Any]:
    kept = ["lm_head", "re:.*mlp.gate$", "re:.*self_attn.*"]
    return {
        "mxfp4": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        "fp8": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [_BLOCK, _BLOCK],
            "modules_to_not_convert": [
                "gate",
                "self_attn",
                "lm_head",
                "linear_attn",
                "shared_expert",
                "shared_experts",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
                "shared_expert_gate",
            ],
        },
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": True},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True},
        "compressed-tensors": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": kept,
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8},
                }
            },
        },
    }[method]


def _mxfp4(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """[E, in, out] as blocks [E, out, in / 32, 16] and exponents [E, out, in / 32]."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield name, tensor
        return
    values = tensor.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = (values.abs().amax(-1).clamp(min=1e-9) / 6).log2().ceil()
    grid = torch.tensor(_MXFP4)
    scaled = values / exponent.exp2().unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - grid).abs().argmin(-1) + 8 * (scaled < 0)
    yield f"{name}_blocks", (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8).contiguous()
    yield f"{name}_scales", (exponent + 127).to(torch.uint8).contiguous()


def _packed(name: str, tensor: torch.Tensor, method: str) -> Iterator[tuple[str, torch.Tensor]]:
    found = _EXPERT.fullmatch(name)
    if found is None:
        yield name, tensor
        return
    rows, columns = tensor.shape
    stem, draw = found[1], torch.Generator().manual_seed(len(name) + rows)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, generator=draw, dtype=torch.int32)

    groups = math.ceil(columns / 8)
    if method == "fp8":
        blocks = math.ceil(rows / _BLOCK), math.ceil(columns / _BLOCK)
        scale = torch.full(blocks, float(tensor.abs().max()) / 448)
        yield name, (tensor / scale[0, 0]).to(torch.float8_e4m3fn)
        yield f"{stem}.weight_scale_inv", scale
    elif method == "gptq":
        yield f"{stem}.qweight", words(columns // 8, rows)
        yield f"{stem}.qzeros", words(groups, rows // 8)
        yield f"{stem}.scales", torch.rand(groups, rows, generator=draw).half()
        yield f"{stem}.g_idx", (torch.arange(columns) // 8).int()
    elif method == "awq":
        yield f"{stem}.qweight", words(columns, rows // 8)
        yield f"{stem}.qzeros", words(groups, rows // 8)
        yield f"{stem}.scales", torch.rand(groups, rows, generator=draw).half()
    else:
        yield f"{stem}.weight_packed", words(rows, columns // 8)
        yield f"{stem}.weight_scale", torch.rand(rows, groups, generator=draw)
        yield f"{stem}.weight_shape", torch.tensor([rows, columns])


__all__ = ["METHODS", "SIZES", "carriers", "save_packed"]
