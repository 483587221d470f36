"""Experts of moeify's own MoE models, and the ways to compute them.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.

Shapes: N tokens, H hidden, F expert width, E experts, K top-k.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation
from transformers.pytorch_utils import Conv1D

from .moe_families import FeedForward

_KERNEL_BYTES = 16  # what rows of torch's grouped products are multiples of

Implementation = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A dense feed-forward network, as far as its experts are the same.

    Each expert has one of its `slices`, `ffn_size` neurons wide, None standing for a single linear layer; `shared` are
    further ones. It gives `output_size` values, as many as it reads where that is None. `joined` says that one
    product gives both halves of a gated network. `is_transposed` stores weights as `Conv1D` does, [in, out].
    """

    hidden_size: int
    ffn_size: int | None
    activation: Callable[[Tensor], Tensor] | None = None
    output_size: int | None = None
    gated: bool = False
    joined: bool = False
    biased: bool = True
    is_transposed: bool = False
    inner_dropout: nn.Module | None = None
    slices: int = 1
    shared: int = 0

    @classmethod
    def of(cls, layer: nn.Module, ffn: FeedForward, slices: int = 1, shared: int = 0) -> "Outline":
        """The outline of the network that a dense layer has, with or without memory.

        Raises:
            ValueError: if its neurons do not make so many slices.
        """
        down = layer.get_submodule(ffn.down)
        is_transposed = isinstance(down, Conv1D)
        shape = down.weight.shape if is_transposed else down.weight.shape[::-1]
        count = slices + shared
        if shape[0] % count:
            raise ValueError(
                f"expert_slices and shared_slices must divide the {shape[0]} neurons of a network, not be {count}"
                " together."
            )
        path, _, name = ffn.activation.rpartition(".")
        return cls(
            ffn_size=shape[0] // count,
            slices=slices,
            shared=shared,
            hidden_size=shape[1],
            activation=getattr(layer.get_submodule(path), name),
            gated=ffn.gate is not None,
            joined=ffn.gate == ffn.up,
            biased=down.bias is not None,
            is_transposed=is_transposed,
            inner_dropout=layer.get_submodule(ffn.inner_dropout) if ffn.inner_dropout else None,
        )


class ExpertsImplementations:
    """What runs the experts: transformers' implementations, each where it can run."""

    @staticmethod
    def get_interface(name: str, eager: Implementation) -> Implementation:
        """Return what runs the experts where the config says `name`."""
        requested = ALL_EXPERTS_FUNCTIONS.get_interface(name, eager)

        def run(experts: "Experts", hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            implementation = _runnable(experts, name, requested, eager)
            output = implementation(experts, hidden_states, chosen, weights)
            share = experts.share
            if share == 1:
                return output
            # Tensor parallelism adds up what the ranks give, each of which has the whole bias. Its
            # gradient is not added up: the surplus is taken off the value alone.
            visited = chosen.clamp(max=experts.num_experts - 1)  # beyond are choices with weight 0
            surplus = experts.down_proj_bias.detach()[visited] * weights.unsqueeze(-1)
            return output - (1 - share) * surplus.sum(dim=1).to(output.dtype)

        return run


class Networks(nn.Module):
    """Feed-forward networks of one outline, each tensor fused over them; `lead` is how many there are, () for one.

    `width` is the number of their neurons; None stands for single linear layers.
    """

    has_gate: bool
    is_transposed: bool

    def __init__(self, outline: Outline, lead: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.joined = outline.joined
        self.act_fn, self.inner_dropout = outline.activation, outline.inner_dropout
        self.output_size = outline.output_size or outline.hidden_size
        products = {"down_proj": (self.output_size, width or outline.hidden_size)}
        self.up_name = None
        if width is not None:
            self.up_name = "gate_up_proj" if outline.gated else "up_proj"
            rows = (2 if outline.gated else 1) * width
            products = {self.up_name: (rows, outline.hidden_size), **products}
        for name, shape in products.items():
            stored = shape[::-1] if outline.is_transposed else shape
            self.register_parameter(name, nn.Parameter(torch.empty(*lead, *stored)))
            bias = nn.Parameter(torch.empty(*lead, shape[0])) if outline.biased else None
            self.register_parameter(f"{name}_bias", bias)

    @property
    def up(self) -> tuple[Tensor | None, Tensor | None]:
        """The first product's weight and bias; None where there is one product only."""
        if self.up_name is None:
            return None, None
        return getattr(self, self.up_name), getattr(self, f"{self.up_name}_bias")

    def _inner(self, hidden_states: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """What the down-projection reads, [N, F]."""
        if weight is None:
            return hidden_states
        if not self.has_gate:
            return self.act_fn(self._linear(hidden_states, weight, bias))
        if self.joined:
            return self._apply_gate(self._linear(hidden_states, weight, bias))
        axis = 1 if self.is_transposed else 0
        biases = (None, None) if bias is None else bias.chunk(2)
        halves = zip(weight.chunk(2, dim=axis), biases, strict=True)
        gate, up = (self._linear(hidden_states, *half) for half in halves)
        return self._gated(gate, up)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        """What every implementation of transformers makes of the first product, [N, 2F] to [N, F]."""
        return self._gated(*gate_up.chunk(2, dim=-1))

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        product = self.act_fn(gate) * up
        return product if self.inner_dropout is None else self.inner_dropout(product)

    def _linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.is_transposed:
            return F.linear(hidden_states, weight, bias)
        return hidden_states @ weight if bias is None else torch.addmm(bias, hidden_states, weight)


@use_experts_implementation(experts_interface=ExpertsImplementations, has_gate=False, has_bias=True)
class Experts(Networks):
    """E feed-forward networks, each tensor fused over the experts.

    Plain ones have `up_proj` [E, F, H], gated ones `gate_up_proj` [E, 2F, H] with the gates' rows first; both have
    `down_proj` [E, H, F] and, where the dense network has biases, one beside each. Copies of a single linear layer
    have `down_proj` alone, [E, O, H]. transformers' decorator has `forward` ask `ExpertsImplementations` what to run.

    Args:
        config: the model's.
        outline: the dense network that each of them is shaped like.
    """

    def __init__(self, config: Any, outline: Outline) -> None:
        super().__init__(outline, (config.num_experts,), outline.ffn_size)
        self.num_experts, self.slices = config.num_experts, outline.slices
        self.hidden_size, self.ffn_size = outline.hidden_size, outline.ffn_size

    @property
    def share(self) -> float:
        """The part of each expert's neurons that lies here, which differs from 1 under tensor parallelism."""
        bias = self.up[1]
        return 1 if bias is None else bias.shape[-1] / (self.ffn_size * (2 if self.has_gate else 1))

    def forward(self, hidden_states: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Run each token through its experts and add up the weighted results.

        This is the "eager" implementation: one dense product per expert that has tokens. It runs
        the very kernels of the dense layer, so copies of one network reproduce it to the bit.

        Args:
            hidden_states: [N, H].
            experts: [N, K], expert numbers.
            weights: [N, K], in the dtype of `hidden_states`.

        Returns:
            [N, H], or as wide as the experts' outputs are.
        """
        each, outputs = list(zip(*self._each(), strict=True)), []
        # Slice by slice: a slice's rows fit the processor's cache, and all rows would be new memory every time.
        for chosen, shares in zip(experts.chunk(self.slices, dim=1), weights.chunk(self.slices, dim=1), strict=True):
            outputs.append(self._mixed(hidden_states, chosen, shares, each))
        return sum(outputs[1:], outputs[0]).to(hidden_states.dtype)

    def _mixed(self, hidden_states: Tensor, experts: Tensor, weights: Tensor, each: list[Any]) -> Tensor:
        """The weighted sum of the experts in some columns of [N, K], for [N, H]."""
        top_k = experts.shape[-1]
        order = experts.flatten().argsort(stable=True)
        # Null experts, and under expert parallelism those of other ranks, bear the number after the last.
        counts = torch.bincount(experts.flatten(), minlength=self.num_experts + 1).tolist()
        # [N, H] -> [N * K, H], sorted by expert, one block of rows for each expert
        *blocks, elsewhere = hidden_states[order // top_k].split(counts)
        results = [
            self._linear(self._inner(block, up, up_bias), down, down_bias)
            for block, (up, up_bias, down, down_bias) in zip(blocks, each, strict=True)
            if block.shape[0]
        ]
        if not results:
            return hidden_states.new_zeros(hidden_states.shape[0], self.output_size)
        if elsewhere.shape[0]:
            results.append(elsewhere.new_zeros(elsewhere.shape[0], self.output_size))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.shape[0], device=order.device)
        # [N * K, H], sorted by expert -> [N, K, H], as the tokens came
        outputs = torch.cat(results)[inverse].unflatten(0, (-1, top_k)) * weights.unsqueeze(-1)
        # A sum over an axis accumulates half precision in float32; index_add would not.
        wide = None if self.slices == 1 else torch.promote_types(outputs.dtype, torch.float32)
        return outputs.sum(dim=1, dtype=wide)

    def _each(self) -> Iterator[Any]:
        """The four parameters, each as a list over the experts.

        Indexing a fused parameter E times would cost E full-size gradients; unbind costs one.
        """
        for parameter in (*self.up, self.down_proj, self.down_proj_bias):
            yield [None] * self.num_experts if parameter is None else parameter.unbind()


class SharedSlices(Networks):
    """The slices of a network that every token visits, as one network."""

    def __init__(self, outline: Outline) -> None:
        super().__init__(outline, (), outline.shared * outline.ffn_size)
        self.has_gate, self.is_transposed = outline.gated, outline.is_transposed

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [N, H] to [N, H]."""
        return self._linear(self._inner(hidden_states, *self.up), self.down_proj, self.down_proj_bias)


def experts_like(outline: Outline, config: Any) -> Experts:
    """Experts of the shape of a dense network; transformers' decorator sets what it knows by the class alone."""
    experts = Experts(config, outline)
    experts.has_gate, experts.has_bias = outline.gated, outline.biased
    experts.is_transposed = outline.is_transposed
    if config.null_experts:
        experts._is_expert_parallel = True  # by which transformers' implementations pass over a number too large
    return experts


def _runnable(experts: Experts, name: str, requested: Implementation, eager: Implementation) -> Implementation:
    """The implementation called `name`, or another for what it cannot do.

    "eager" takes shapes from the data, which tracing cannot follow, and torch's grouped products
    want rows of whole 16 bytes.
    """
    exporting = torch.compiler.is_exporting()
    tracing = exporting or torch.compiler.is_compiling()
    # transformers' own implementations run two products, and give what is as wide as what they read.
    if experts.up_name is None or experts.output_size != experts.hidden_size:
        return every_expert if tracing else eager
    if name != "grouped_mm" and not (name == "eager" and tracing):
        return requested
    fits = all(size % _KERNEL_BYTES == 0 for size in _row_bytes(experts))
    if fits and not (name == "eager" and exporting):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    return every_expert if tracing else eager


def _row_bytes(experts: Experts) -> Iterator[int]:
    """Bytes of the products' rows; biases tell them where there are any: quantised weights would be unpacked."""
    axis = -1 if experts.is_transposed else -2
    for weight, bias in (experts.up, (experts.down_proj, experts.down_proj_bias)):
        size = weight.shape[axis] if bias is None else bias.shape[-1]
        halves = 2 if experts.has_gate and weight is experts.up[0] else 1
        yield size // halves * (weight if bias is None else bias).element_size()


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
    # [N, H] x [E, H, F] -> [E, N, F] -> [E, N, H]
    inner, (up, up_bias) = hidden_states, experts.up
    if up is not None:
        inner = _products(experts, hidden_states, up, up_bias)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outputs = _products(experts, inner, experts.down_proj, experts.down_proj_bias)
    numbers = torch.arange(outputs.shape[0], device=chosen.device)
    # [N, K] -> [E, N, 1], 0 where the token does not visit the expert
    shares = (weights * (chosen == numbers[:, None, None])).sum(dim=-1, keepdim=True)
    return (outputs * shares).sum(dim=0)


def _products(experts: Experts, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    products = values @ (weight if experts.is_transposed else weight.transpose(1, 2))
    return products if bias is None else products + bias.unsqueeze(1)
