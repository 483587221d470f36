"""Running a mixture over text and seeing, layer by layer, where each token goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import RoutingError
from moeify.families.base import MoeLayout
from moeify.families.registry import is_encoder_type
from moeify.routing.choosing import best_first, chooser, selection_bias
from moeify.routing.data import Blocks
from moeify.routing.running import run_model

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "InputReservoir",
    "Observer",
    "RoutedTokens",
    "base_model",
    "collect",
    "is_encoder",
    "layer_stack",
    "observed",
    "routers",
    "text_model",
]


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
    bias for choosing; -inf for experts of groups that a token does not keep).
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


_EXPERT_INPUTS = 256

Observer = Callable[[RoutedTokens], None]


def base_model(model: nn.Module) -> nn.Module:
    """``model`` without its head."""
    base: nn.Module = getattr(model, "base_model", model)
    return base


def routers(model: nn.Module, layout: MoeLayout) -> dict[int, nn.Module]:
    """The router module of every MoE layer of a loaded model.

    Raises ``RoutingError`` where ``layout`` does not fit the model.
    """
    relative = layout.router_module or layout.router.removesuffix(".weight")
    text = text_model(model, layout.layer.split(".")[0])
    found = {}
    for layer in layout.moe_layers(model.config.to_dict()):  # type: ignore[operator, union-attr]
        name = layout.layer.format(layer=layer) + relative
        try:
            found[layer] = text.get_submodule(name)
        except AttributeError:
            raise RoutingError(f"{type(model).__name__} has no router {name!r}") from None
    return found


def layer_stack(model: nn.Module, layout: MoeLayout) -> nn.Module:
    """The module whose children are the layers, those without experts too."""
    root = layout.layer.split(".{layer}")[0]
    return text_model(model, root.split(".")[0]).get_submodule(root)


def text_model(model: nn.Module, root: str) -> nn.Module:
    """The part of a model that holds the layers (``root``), where it sees as well as reads."""
    base = base_model(model)
    for name in ("", "model", "language_model", "language_model.model"):
        try:
            part = base.get_submodule(name)
        except AttributeError:
            continue
        if hasattr(part, root):
            return part
    return base


def collect(
    model: nn.Module, layout: MoeLayout, blocks: Blocks, observe: Observer, *, batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Run ``model`` over ``blocks`` without gradients and show ``observe`` every layer's routing.

    The head is not run. ``progress`` is called with blocks done and blocks in all.
    """
    import torch

    base, done = base_model(model), 0
    device = next(model.parameters()).device
    with torch.no_grad(), observed(model, layout, observe) as expect:
        for inputs, part in blocks.batches(batch_size):
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            expect(inputs["attention_mask"], part)
            run_model(base, **inputs, **({} if is_encoder(model) else {"use_cache": False}))
            done += len(part)
            if progress is not None:
                progress(done, len(blocks))


@contextmanager
def observed(
    model: nn.Module, layout: MoeLayout, observe: Observer
) -> Iterator[Callable[[Tensor, Blocks | None], None]]:
    """Hook the routers of ``model`` while the context lasts.

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

    def rows(values: Tensor) -> Tensor:
        """The real tokens' rows [T, H] of [N, H], or of [B, H] with one row for a sequence."""
        real = current["real"]
        flat = values.reshape(-1, values.shape[-1])
        if len(flat) != len(real):
            flat = flat.repeat_interleave(len(real) // len(flat), dim=0)
        return flat[real.to(flat.device)]

    def seen(
        layer: int, inputs: Tensor, logits: Tensor, weights: Tensor, experts: Tensor,
        expert_inputs: Tensor | None = None,
    ) -> None:  # fmt: skip
        real = current["real"]
        if len(real) != len(logits):
            raise RoutingError(
                f"the router of layer {layer} saw {len(logits)} tokens, the batch has {len(real)}"
            )
        logits = logits.float().cpu()[real]
        observe(
            RoutedTokens(
                layer=layer,
                inputs=rows(inputs),
                logits=logits,
                experts=experts.cpu()[real],
                weights=weights.float().cpu()[real],
                domains=current["domains"],
                token_ids=current["token_ids"],
                expert_inputs=None if expert_inputs is None else rows(expert_inputs),
                **choosing[layer](logits),
            )
        )

    handles = []
    found = {n: r for n, r in routers(model, layout).items() if not next(r.parameters()).is_meta}
    choosing = {
        layer: chooser(layout.rule, model.config.to_dict(), selection_bias(model, router, layout))  # type: ignore[operator, union-attr]
        for layer, router in found.items()
    }
    top_k = layout.top_k(model.config.to_dict())  # type: ignore[operator, union-attr]
    try:
        for layer, router in found.items():
            handles += _hook(model, layer, router, seen, top_k)
        yield expect
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    model: nn.Module, layer: int, router: nn.Module, seen: Callable[..., None], top_k: int
) -> list[Any]:
    """Report one layer. moeify's own routers choose in a module beside them, others by themselves.

    Both return logits, weights and experts, in that order.
    """
    parent = _parent(model, router)
    beside = getattr(parent, "routing", None)
    if parent is None or beside is None:
        return [
            router.register_forward_hook(
                lambda _, args, out: seen(layer, args[0], *best_first(out, top_k))
            )
        ]
    read: dict[str, Tensor] = {}
    handles = [
        router.register_forward_hook(lambda _, args, out: read.update(router=args[0])),
        beside.register_forward_hook(
            lambda _, args, out: seen(layer, read.pop("router"), *out, read.pop("experts", None))
        ),
    ]
    if getattr(parent, "pool", None) is not None:
        handles.append(
            parent.register_forward_pre_hook(lambda _, args: read.update(experts=args[0]))
        )
    return handles


def _parent(model: nn.Module, module: nn.Module) -> nn.Module | None:
    for parent in model.modules():
        if any(child is module for child in parent.children()):
            return parent
    return None


def is_encoder(model: nn.Module) -> bool:
    """Whether ``model`` has no cache to switch off."""
    config: Any = model.config
    return is_encoder_type(config.model_type) and not getattr(config, "is_decoder", False)


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
