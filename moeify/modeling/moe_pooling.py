"""What routers read where one decision is made for a whole sequence: means over its tokens.

This file travels inside checkpoints: it imports torch and transformers only.

Shapes: B batch, S sequence, T cached and new tokens, N = B * S tokens, H hidden.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer


class SequencePool:
    """The router's inputs of one layer, from the hidden states that its experts read.

    An encoder has the mean over a sequence's real tokens. A decoder has the running mean over the
    tokens so far: it sees no later token, so that a step with a cache decides as a full pass does.
    The cache then holds, behind the keys and values of all layers, one more entry for each layer
    that pools: the sums and counts up to every token, which are cropped, reordered and reset with
    the rest.

    Args:
        causal: whether tokens may read earlier tokens only.
        layer: the layer's number.
        num_layers: layers of the model, whose keys and values come first in a cache.
    """

    def __init__(self, *, causal: bool, layer: int, num_layers: int) -> None:
        self.causal = causal
        self.layer = layer
        self.num_layers = num_layers

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Pool [B, S, H] over real tokens, in float32 at least.

        Args:
            hidden_states: [B, S, H].
            mask: [B, T] or [B, choices, T], nonzero for real tokens; None counts all.
            starts: [B, S], where several sequences share a row: the place of the first token of
                each token's sequence.
            cache: the key-value cache of a decoder, which this layer's sums join.

        Returns:
            [B, H], or [N, H] for a decoder and where `starts` are given; zeros before the first real token.
        """
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        weights = _weights(mask, hidden_states).to(dtype)
        weighted = hidden_states.to(dtype) * weights
        if not self.causal and starts is None:
            return weighted.sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        if not self.causal:
            sums, counts = _sums_by_start(weighted, starts), _sums_by_start(weights, starts)
            return (sums / counts.clamp(min=1)).flatten(0, 1)
        sums, counts = weighted.cumsum(dim=1), weights.cumsum(dim=1)
        if starts is not None:
            before = starts.unsqueeze(-1).to(sums.device)
            sums = sums - (sums - weighted).gather(1, before.expand_as(sums))
            counts = counts - (counts - weights).gather(1, before)
        if cache is not None:
            sums, counts = self._continued(cache, sums, counts)
        return (sums / counts.clamp(min=1)).flatten(0, 1)

    def _continued(self, cache: Cache, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Add what the cache holds to sums [B, S, H] and counts [B, S, 1], and store the result."""
        # A decoder with cross-attention keeps two caches.
        cache = getattr(cache, "self_attention_cache", cache)
        layer = self._entry(cache)
        if isinstance(layer, StaticSums):
            return layer.extend(sums, counts)
        held, past = layer.get_seq_length(), cache.get_seq_length(self.layer) - sums.shape[1]
        if held != past:
            raise ValueError(
                f"The cache holds {past} tokens of attention and {held} of the router's mean: it "
                "was not filled by a model with route_by='sequence'. Start with a fresh cache."
            )
        if held:
            sums = sums + layer.keys[:, 0, -1:].to(sums.device)
            counts = counts + layer.values[:, 0, -1:].to(counts.device)
        layer.update(sums.unsqueeze(1), counts.unsqueeze(1))
        return sums, counts

    def _entry(self, cache: Cache) -> Any:
        """This layer's entry in the cache, which is made where it is missing."""
        if getattr(cache, "offloading", False):
            raise ValueError(
                "An offloaded cache cannot hold the running means of route_by='sequence'. Use "
                "another cache_implementation."
            )
        kind = StaticSums if isinstance(cache.layers[self.layer], StaticLayer) else DynamicLayer
        while len(cache.layers) < self.num_layers:
            # A cache made without a config grows with the layers.
            cache.layers.append(cache.layer_class_to_replicate())
        while len(cache.layers) <= self.num_layers + self.layer:
            cache.layers.append(kind())
        return cache.layers[self.num_layers + self.layer]


class StaticSums(StaticLayer):
    """The last sums and counts of one layer, in tensors that stay where they are."""

    def __init__(self) -> None:
        super().__init__(max_cache_len=1)

    def extend(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Add what is held to sums [B, S, H] and counts [B, S, 1], and hold the last of them."""
        if not self.is_initialized:
            self.lazy_initialization(sums.unsqueeze(1), counts.unsqueeze(1))
        sums, counts = sums + self.keys[:, 0], counts + self.values[:, 0]
        self.keys.copy_(sums[:, None, -1:])
        self.values.copy_(counts[:, None, -1:])
        self.cumulative_length.add_(sums.shape[1])
        return sums, counts


def what_is_pooled(arguments: Mapping[str, Any], mask: Any = None) -> tuple[Tensor | None, Tensor | None]:
    """The `mask` and the `starts` of `SequencePool`, from the arguments of a base model's forward.

    A `mask` that is given counts instead of the attention mask.

    Raises:
        ValueError: if the arguments do not say which tokens are real, or which belong together.
    """
    if arguments.get("cache") is not None:
        raise ValueError(
            "Continuous batching splits sequences over batches, where route_by='sequence' cannot "
            "follow them. Use generate() instead."
        )
    if mask is None:
        mask = arguments.get("attention_mask")
    if mask is None:
        return None, _packed_sequences(arguments)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3):
        raise ValueError(
            "route_by='sequence' needs an attention mask of shape [B, S], which says what tokens "
            "are real. With another mask pass that one as router_mask too."
        )
    return mask, None


def generation_mask(attention_mask: Tensor | None, new_tokens: Tensor) -> Tensor:
    """The mask [B, S] of a generation step's new tokens, ids [B, S] or embeddings [B, S, H]."""
    length = new_tokens.shape[1]
    if attention_mask is None:
        return torch.ones(new_tokens.shape[:2], dtype=torch.long, device=new_tokens.device)
    return attention_mask[:, -length:].contiguous()


def _packed_sequences(arguments: Mapping[str, Any]) -> Tensor | None:
    """Where sequences start that share a row, which transformers' masks tell by the positions."""
    positions = arguments.get("position_ids")
    if positions is None or arguments.get("past_key_values") is not None:
        return None
    positions = positions.reshape(-1, positions.shape[-1])
    restarts = positions[:, 1:] - positions[:, :-1] != 1
    places = torch.arange(1, positions.shape[-1], device=positions.device)
    return torch.nn.functional.pad(places * restarts, (1, 0)).cummax(dim=-1).values


def _sums_by_start(values: Tensor, starts: Tensor) -> Tensor:
    """For each token the sum of [B, S, X] over the tokens whose sequence has the same start."""
    places = starts.to(values.device).unsqueeze(-1).expand_as(values)
    return torch.zeros_like(values).scatter_add(1, places, values).gather(1, places)


def _weights(mask: Tensor | None, hidden_states: Tensor) -> Tensor:
    """1 for the real tokens among [B, S, H], 0 for padding: [B, S, 1]."""
    batch, length = hidden_states.shape[:2]
    if mask is None:
        return hidden_states.new_ones(batch, length, 1)
    # [B, T] or [B, choices, T] -> [rows, T]
    rows = mask.reshape(-1, mask.shape[-1])
    if rows.shape[0] != batch or rows.shape[-1] < length:
        raise ValueError(f"The mask {tuple(mask.shape)} does not fit {batch} sequences of {length} tokens.")
    return (rows[:, -length:] != 0).unsqueeze(-1).to(hidden_states.device)
