"""What each of two processes does that share a model: `python -m tests.modeling.two_processes`."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from transformers.distributed import DistributedConfig

from moeify.modeling import modeling_moe
from tests.modeling.tiny_models import inputs, tensors
from tests.tiny import state

PLANS = {
    "tensor": DistributedConfig(tp_size=2),
    "experts": DistributedConfig(tp_size=2, ep_size=2),
    "exchange": DistributedConfig(fsdp_size=2, ep_size=2),
}


def compare(head: str, folder: Path, plan: str) -> None:
    """Outputs, gradients and what is saved equal those of the whole model."""
    moe_class = getattr(modeling_moe, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = moe_class.from_pretrained(folder, distributed_config=PLANS[plan])
    whole = moe_class.from_pretrained(folder)
    up = next(p for name, p in model.named_parameters() if name.endswith(("experts.up_proj", "experts.gate_up_proj")))
    assert 2 * up.to_local().numel() == up.numel()
    batch = inputs(head, labels=True)
    found, expected = (m.eval()(**batch, output_router_logits=True) for m in (model, whole))
    for name, tensor in tensors(expected).items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)
    for output in (found, expected):
        output.loss.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-4, msg=name)
    again = folder.with_name(f"{folder.name}-{plan}")
    model.save_pretrained(again)
    torch.distributed.barrier()
    before, after = state(folder), state(again)
    # What FSDP gathers has no place for the guard, the one tensor that no module holds.
    assert before.keys() - after.keys() <= {next(n for n in before if before[n].shape == (1,))}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after)


if __name__ == "__main__":
    rank, meeting, *folders = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    for folder in map(Path, folders):
        for plan in PLANS:
            compare(folder.name, folder, plan)
            print(folder.name, plan, flush=True)
    torch.distributed.destroy_process_group()
