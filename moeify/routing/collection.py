"""Running a mixture over text and seeing, layer by layer, where each token goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import RoutingError
from moeify.families.moe_layout import MoeLayout
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedMixture, Routed
from moeify.routing.passes import Passes, walking

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RoutedTokens:
    """The T real tokens of one batch in one MoE layer; padding is left out.

    ``inputs`` [T, H] are what the router reads, in the model's dtype; ``expert_inputs`` [T, H]
    what the experts read where that is something else: whole sequences are routed by the mean of
    their tokens. ``logits`` [T, E] are the router's, float32; ``experts`` [T, K] the chosen
    experts, best first; ``weights`` [T, K] what multiplies their outputs, float32. ``domains`` [T]
    is each token's domain, None where the data names none; ``token_ids`` [T] its place in the
    vocabulary. Where a family does not choose by a softmax of the logits alone, ``scores`` [T, E]
    are its scores, scaled to sum to 1, and ``selection`` [T, E] what it takes the best of (with the
    bias for choosing; -inf for experts of groups that a token does not keep). In each of ``slices`` routers decide
    by themselves. Where a token may choose null experts, their number among ``experts`` is E.
    """

    layer: int
    inputs: Tensor
    logits: Tensor
    experts: Tensor
    weights: Tensor
    domains: Tensor | None
    token_ids: Tensor | None = None
    scores: Tensor | None = None
    selection: Tensor | None = None
    expert_inputs: Tensor | None = None
    slices: int = 1

    def take(self, rows: slice) -> RoutedTokens:
        """The tokens at ``rows`` of the T."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if hasattr(value, "shape")})


_EXPERT_INPUTS = 256

Observer = Callable[[RoutedTokens], object]


def collect(
    passes: Passes,
    layout: MoeLayout,
    blocks: Blocks,
    observe: Observer,
    *,
    batch_size: int = 8,
    name: str = "routing text",
) -> None:
    """Walk ``passes`` over ``blocks`` without gradients; ``observe`` sees every layer's routing."""
    import torch

    passes.check_room(blocks.input_ids.size)
    with walking(name, passes, len(blocks)) as walk:
        for place in range(len(passes)):
            with (
                torch.no_grad(),
                passes.opened(place) as step,
                observed(LoadedMixture(step.model, layout), observe) as expect,
            ):
                for number, (inputs, part) in enumerate(blocks.batches(batch_size)):
                    expect(inputs["attention_mask"], part)
                    step.run(number, inputs)
                    walk.advance(len(part))


@contextmanager
def observed(mixture: LoadedMixture, observe: Observer) -> Iterator[Callable[[Tensor, Blocks | None], None]]:
    """Show ``observe`` what the routers do while the context lasts.

    Yields a function that must be told each batch's attention mask [B, S], and its blocks where
    domains matter, before the model runs. Layers whose weights are not loaded are left alone.
    """
    current: dict[str, Any] = {}

    def expect(mask: Tensor, part: Blocks | None = None) -> None:
        import torch

        current["real"] = mask.flatten().bool().cpu()
        current["domains"] = current["token_ids"] = None
        if part is not None:
            current["token_ids"] = torch.from_numpy(part.input_ids).flatten()[current["real"]]
        if part is not None and part.domains is not None:
            per_token = torch.from_numpy(part.domains).repeat_interleave(mask.shape[-1])
            current["domains"] = per_token[current["real"]]

    def seen(routed: Routed) -> None:
        real, number = current["real"], routed.layer.number
        if len(real) != len(routed.logits):
            raise RoutingError(
                f"the router of layer {number} saw {len(routed.logits)} tokens, the batch has {len(real)}"
            )
        observe(real_tokens(routed, real, domains=current["domains"], token_ids=current["token_ids"]))

    with mixture.watched(seen):
        yield expect


def real_tokens(
    routed: Routed, real: Tensor, *, domains: Tensor | None = None, token_ids: Tensor | None = None
) -> RoutedTokens:
    """What a layer did with the T tokens that ``real`` [N] keeps, bool and on the CPU, whose domains are [T]."""
    logits, apart = routed.logits.float().cpu()[real], routed.expert_inputs
    return RoutedTokens(
        layer=routed.layer.number,
        inputs=_rows(routed.inputs, real),
        logits=logits,
        experts=routed.experts.cpu()[real],
        weights=routed.weights.float().cpu()[real],
        domains=domains,
        token_ids=token_ids,
        expert_inputs=None if apart is None else _rows(apart, real),
        slices=routed.layer.slices,
        **routed.layer.choice(logits),
    )


def _rows(values: Tensor, real: Tensor) -> Tensor:
    """The real tokens' rows [T, H] of [N, H], or of [B, H] with one row for a sequence."""
    flat = values.reshape(-1, values.shape[-1])
    if len(flat) != len(real):
        flat = flat.repeat_interleave(len(real) // len(flat), dim=0)
    return flat[real.to(flat.device)]


class InputReservoir:
    """Per layer a uniform sample of at most ``capacity`` tokens: inputs, domains.

    An observer for ``collect``. It holds capacity x H values for each layer in the dtype that they
    come in, however many tokens pass, and where experts read something else, that of the first 256
    tokens. Every layer keeps the same tokens (Vitter's algorithm R, vectorised per batch).
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity, self.seed = capacity, seed
        self._rows: dict[int, Tensor] = {}
        self._domains: dict[int, Tensor] = {}
        self._expert_inputs: dict[int, list[Tensor]] = {}
        self._seen: dict[int, int] = {}
        self._draws: dict[int, Any] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers seen."""
        return tuple(self._rows)

    def __call__(self, tokens: RoutedTokens) -> None:
        self.add(tokens.layer, tokens.inputs, tokens.domains)
        if tokens.expert_inputs is not None:
            kept = self._expert_inputs.setdefault(tokens.layer, [])
            wanted = _EXPERT_INPUTS - sum(len(part) for part in kept)
            if wanted > 0:
                kept.append(tokens.expert_inputs[:wanted].detach().float().cpu())

    def add(self, layer: int, inputs: Tensor, domains: Tensor | None) -> None:
        """Show it ``inputs`` [T, H] of one layer and their domains [T]."""
        import torch

        rows = inputs.detach().cpu()
        count = len(rows)
        if layer not in self._rows:
            self._rows[layer] = torch.empty(self.capacity, rows.shape[1], dtype=rows.dtype)
            self._domains[layer] = torch.full((self.capacity,), -1)
            self._seen[layer] = 0
            self._draws[layer] = torch.Generator().manual_seed(self.seed)
        place = torch.arange(self._seen[layer], self._seen[layer] + count)
        drawn = torch.rand(count, generator=self._draws[layer], dtype=torch.float64)
        # Token number n (from 0) replaces a kept one with probability capacity / (n + 1).
        target = torch.where(place < self.capacity, place, (drawn * (place + 1)).long())
        # Of several tokens for one place the last stays: first seen from behind.
        places, behind = np.unique(target.numpy()[::-1], return_index=True)
        keep = places < self.capacity
        chosen = torch.from_numpy(count - 1 - behind[keep])
        self._rows[layer][torch.from_numpy(places[keep])] = rows[chosen]
        if domains is not None:
            self._domains[layer][torch.from_numpy(places[keep])] = domains[chosen]
        self._seen[layer] += count

    def inputs(self, layer: int) -> Tensor:
        """The kept inputs [T, H] of one layer, float32."""
        return self._rows[layer][: self._seen[layer]].float()

    def expert_inputs(self, layer: int) -> Tensor:
        """What the experts of one layer read for some tokens [T, H], T at most 256, float32."""
        import torch

        kept = self._expert_inputs.get(layer)
        return self.inputs(layer)[:_EXPERT_INPUTS] if kept is None else torch.cat(kept)

    def domains(self, layer: int) -> Tensor:
        """The kept tokens' domains [T], -1 where none is named."""
        return self._domains[layer][: self._seen[layer]]

    @property
    def nbytes(self) -> int:
        """Bytes that the kept inputs take."""
        return sum(rows.nbytes for rows in self._rows.values())
