"""Other ways to the same mixture: load-modify-save with transformers, and mergekit-moe."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

__all__ = ["PEERS", "installed_peer", "mergekit_command", "transformers_command"]

PEERS = {
    "mergekit": (("mergekit==0.1.5",), "mergekit-moe"),
    "mixturekit": (("mixturekit==1.1.1", "trl==1.16.0", "datasets", "accelerate"), "mixturekit"),
}
"""What each tool is installed as, and its command."""


def transformers_command(source: Path, output: Path, num_experts: int) -> list[str]:
    """The command that loads, copies and saves with transformers alone, without noise."""
    return [sys.executable, "-m", "benchmarks.peers", str(source), str(output), str(num_experts)]


def _load_modify_save(source: str, output: str, num_experts: int) -> None:
    """The shortest way through memory: no random weights are drawn, every tensor exists once."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    config = dense.config.to_dict()
    for key in ("model_type", "architectures"):
        config.pop(key)
    config |= {
        "num_experts": num_experts,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "moe_intermediate_size": config["intermediate_size"],
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 0,
    }
    with torch.device("meta"):
        moe = Qwen2MoeForCausalLM(Qwen2MoeConfig(**config))
    weights = dict(dense.state_dict())
    for name, empty in moe.state_dict().items():
        layer, _, rest = name.partition(".mlp.")
        if rest == "experts.gate_up_proj":
            pair = [weights.pop(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up")]
            weights[name] = torch.cat(pair).expand(num_experts, -1, -1).contiguous()
        elif rest == "experts.down_proj":
            one = weights.pop(f"{layer}.mlp.down_proj.weight")
            weights[name] = one.expand(num_experts, -1, -1).contiguous()
        elif name not in weights:
            weights[name] = torch.randn(empty.shape, dtype=torch.bfloat16) * 0.02
    moe.load_state_dict(weights, assign=True)
    moe.tie_weights()
    moe.save_pretrained(output)


def installed_peer(name: str, folder: Path) -> Path:
    """The command of a tool in an environment of its own, made where it is missing; raises ``RuntimeError``."""
    requirements, command = PEERS[name]
    tool = folder / "bin" / command
    if tool.is_file():
        return tool
    venv.create(folder, with_pip=True)
    # The torch that is here already: left to itself, pip would fetch gigabytes of CUDA.
    torch = f"torch=={version('torch').partition('+')[0]}"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", torch, *requirements]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise RuntimeError(f"{requirements[0]} could not be installed (is there a network?): {reason}")
    return tool


def mergekit_command(tool: Path, source: Path, output: Path, num_experts: int) -> list[str]:
    """The nearest that mergekit-moe does: Qwen2 with the shared expert that it insists on."""
    expert = {"source_model": str(source), "positive_prompts": [""]}
    recipe = {
        "base_model": str(source),
        "gate_mode": "random",
        "dtype": "bfloat16",
        "architecture": "qwen",
        "experts": [expert] * num_experts,
        "shared_experts": [{**expert, "residual_scale": 0.1}],
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return [str(tool), str(path), str(output), "--no-copy-tokenizer"]


if __name__ == "__main__":
    _load_modify_save(sys.argv[1], sys.argv[2], int(sys.argv[3]))
