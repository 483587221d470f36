"""Experts of the BERT-MoE and GPT-2-MoE models, and the ways to compute them.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.

Shapes: N tokens, H hidden, F expert width, E experts, K top-k.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

_KERNEL_BYTES = 16  # what rows of torch's grouped products are multiples of

Implementation = Callable[..., Tensor]


class Experts(nn.Module):
    """E two-layer feed-forward networks with biases, each tensor fused over the experts.

    Subclasses carry transformers' `use_experts_implementation` decorator, which sets
    `is_transposed` and has `forward` ask `ExpertsImplementations` what to run.

    Args:
        num_experts: E.
        hidden_size: H.
        ffn_size: F.
        activation: a name transformers knows, such as "gelu_new".
        is_transposed: False stores weights as `nn.Linear` does, [E, F, H] and [E, H, F]; True as
            GPT-2's `Conv1D` does, [E, H, F] and [E, F, H].
    """

    is_transposed: bool

    def __init__(
        self,
        *,
        num_experts: int,
        hidden_size: int,
        ffn_size: int,
        activation: str | Callable[[Tensor], Tensor],
        is_transposed: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.ffn_size = ffn_size
        up, down = (ffn_size, hidden_size), (hidden_size, ffn_size)
        if is_transposed:
            up, down = down, up
        self.up_proj = nn.Parameter(torch.empty(num_experts, *up))
        self.up_proj_bias = nn.Parameter(torch.empty(num_experts, ffn_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, *down))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.act_fn = ACT2FN[activation] if isinstance(activation, str) else activation

    def forward(self, hidden_states: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Run each token through its experts and add up the weighted results.

        This is the "eager" implementation: one dense product per expert that has tokens. It runs
        the very kernels of the dense layer, so copies of one network reproduce it to the bit.

        Args:
            hidden_states: [N, H].
            experts: [N, K], expert numbers.
            weights: [N, K], in the dtype of `hidden_states`.

        Returns:
            [N, H].
        """
        top_k = experts.shape[-1]
        order = experts.flatten().argsort(stable=True)
        # Under expert parallelism, experts of other ranks bear the number after the last.
        counts = torch.bincount(experts.flatten(), minlength=self.num_experts + 1).tolist()
        # [N, H] -> [N * K, H], sorted by expert, one block of rows for each expert
        *blocks, elsewhere = hidden_states[order // top_k].split(counts)
        # Indexing a fused parameter E times would cost E full-size gradients; unbind costs one.
        parameters = zip(
            self.up_proj.unbind(),
            self.up_proj_bias.unbind(),
            self.down_proj.unbind(),
            self.down_proj_bias.unbind(),
            strict=True,
        )
        results = [
            self._linear(self.act_fn(self._linear(block, up, up_bias)), down, down_bias)
            for block, (up, up_bias, down, down_bias) in zip(blocks, parameters, strict=True)
            if block.shape[0]
        ]
        if not results:
            return torch.zeros_like(hidden_states)
        if elsewhere.shape[0]:
            results.append(torch.zeros_like(elsewhere))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.shape[0], device=order.device)
        # [N * K, H], sorted by expert -> [N, K, H], as the tokens came
        outputs = torch.cat(results)[inverse].unflatten(0, (-1, top_k))
        # A sum over an axis accumulates half precision in float32; index_add would not.
        return (outputs * weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    def _linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.is_transposed:
            return torch.addmm(bias, hidden_states, weight)
        return F.linear(hidden_states, weight, bias)


class ExpertsImplementations:
    """What runs the experts: transformers' implementations, each where it can run."""

    @staticmethod
    def get_interface(name: str, eager: Implementation) -> Implementation:
        """Return what runs the experts where the config says `name`."""
        requested = ALL_EXPERTS_FUNCTIONS.get_interface(name, eager)

        def run(experts: Experts, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            implementation = _runnable(experts, name, requested, eager)
            output = implementation(experts, hidden_states, chosen, weights)
            share = experts.up_proj_bias.shape[-1] / experts.ffn_size
            if share == 1:
                return output
            # Tensor parallelism adds up what the ranks give, each of which has the whole bias. Its
            # gradient is not added up: the surplus is taken off the value alone.
            surplus = experts.down_proj_bias.detach()[chosen] * weights.unsqueeze(-1)
            return output - (1 - share) * surplus.sum(dim=1).to(output.dtype)

        return run


def _runnable(experts: Experts, name: str, requested: Implementation, eager: Implementation) -> Implementation:
    """The implementation called `name`, or another for what it cannot do.

    "eager" takes shapes from the data, which tracing cannot follow, and torch's grouped products
    want rows of whole 16 bytes.
    """
    exporting = torch.compiler.is_exporting()
    tracing = exporting or torch.compiler.is_compiling()
    if name != "grouped_mm" and not (name == "eager" and tracing):
        return requested
    # Biases tell the widths: quantised weights would be unpacked for it.
    biases = (experts.up_proj_bias, experts.down_proj_bias)
    fits = all(b.shape[-1] * b.element_size() % _KERNEL_BYTES == 0 for b in biases)
    if fits and not (name == "eager" and exporting):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    return every_expert if tracing else eager


def every_expert(experts: Experts, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Run every expert on every token, E / K times the work, in plain products of fixed shapes.

    Args:
        experts: the experts.
        hidden_states: [N, H].
        chosen: [N, K], expert numbers.
        weights: [N, K], in the dtype of `hidden_states`.

    Returns:
        [N, H].
    """
    up, down = experts.up_proj, experts.down_proj
    if not experts.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    # [N, H] x [E, H, F] -> [E, N, F] -> [E, N, H]
    inner = experts.act_fn(hidden_states @ up + experts.up_proj_bias.unsqueeze(1))
    outputs = inner @ down + experts.down_proj_bias.unsqueeze(1)
    numbers = torch.arange(up.shape[0], device=chosen.device)
    # [N, K] -> [E, N, 1], 0 where the token does not visit the expert
    shares = (weights * (chosen == numbers[:, None, None])).sum(dim=-1, keepdim=True)
    return (outputs * shares).sum(dim=0)
