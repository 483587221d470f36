"""The modules of a loaded mixture, found once: each layer's router, what chooses, its experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeify.errors import ConfigError, RoutingError
from moeify.families.moe_layout import MoeLayout, RouterRule
from moeify.families.registry import is_encoder_type, is_mixture, moe_layout
from moeify.routing.choosing import Choice, choice, in_slices

if TYPE_CHECKING:
    from torch import Tensor, nn

Route = Callable[["LoadedLayer", "Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""From layer, logits [N, E], weights [N, K] and experts [N, K] to other weights and experts."""


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What one layer did with the N tokens of a forward pass, gradients included.

    ``inputs`` [N, H] are what the router read, [B, H] where it reads whole sequences; the experts
    then read ``expert_inputs``, None where that is the same. ``logits`` [N, E] are the router's,
    ``weights`` [N, K] and ``experts`` [N, K] what the model used, slice by slice, the expert with
    most weight first. Where there are Z null experts, which have ``null_logits`` [N, Z], the choice of one has
    number E and weight 0.
    """

    layer: LoadedLayer
    inputs: Tensor
    logits: Tensor
    weights: Tensor
    experts: Tensor
    expert_inputs: Tensor | None = None
    null_logits: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedLayer:
    """One layer's mixture in a loaded or outlined model.

    ``router`` gives logits at least, ``chooser`` logits, weights and experts: a module beside the
    router in moeify's own classes, the router itself in others. ``block`` holds them and the
    ``experts``, which lie in ``slices`` with a router each; ``tied`` neighbours have the same row of it and are one
    copy, which a token visits whole. ``bias`` is added for choosing, ``nulls`` are null experts.
    """

    number: int
    block: nn.Module
    router: Any
    chooser: nn.Module
    experts: Any
    rule: RouterRule
    own_inputs: bool = False
    groups: tuple[int, int] | None
    top_k: int
    bias: Tensor | None
    slices: int = 1
    tied: int = 1
    nulls: Any = None

    @property
    def is_here(self) -> bool:
        """Whether the layer's weights are loaded."""
        return not next(self.router.parameters()).is_meta

    @property
    def router_tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The router's weight, its bias, what is added for choosing, and the rows of null experts, if any."""
        rows = None if self.nulls is None else self.nulls.router.weight
        return self.router.weight, getattr(self.router, "bias", None), self.bias, rows

    def set_router(self, rows: Tensor) -> None:
        """Give the router ``rows`` [E, H]; biases belong to the one before and become 0."""
        weight, *biases, _ = self.router_tensors
        weight.data.copy_(rows)
        for bias in biases:
            if bias is not None:
                bias.data.zero_()

    def tie_rows(self) -> None:
        """Give experts that are one copy the mean of their rows, where training moved these apart."""
        if self.tied > 1:
            weight = self.router.weight.data
            mean = weight.float().unflatten(0, (-1, self.tied)).mean(1)
            weight.copy_(mean.repeat_interleave(self.tied, dim=0))

    def set_bias(self, values: Tensor) -> None:
        """Give the bias for choosing other ``values``, of its own shape."""
        assert self.bias is not None, "checked before"
        self.bias.data.copy_(values)

    @property
    def num_experts(self) -> int:
        """Experts of the layer, E."""
        return len(next(self.experts.parameters()))

    @property
    def copies(self) -> int:
        """Experts that a token chooses from in each slice, those of one copy together."""
        return self.num_experts // self.slices // self.tied

    def choice(self, logits: Tensor) -> Choice:
        """Scores and what the best are taken of, by the family's rule, for ``logits`` [T, E]."""
        return choice(self.rule, self.groups, self.bias, logits, self.slices)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Scores that sum to 1 [T, E] for ``logits`` [T, E]: the router's softmax in most rules."""
        scores = self.choice(logits)["scores"]
        return logits.softmax(-1) if scores is None else scores

    def read(self, out: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, weights and experts of what the chooser gave, most weight first in each slice."""
        if len(out) == 2:  # Llama 4: a weight for every expert, 0 for those not chosen
            every, logits = out
            experts = logits.topk(self.top_k, dim=-1)[1]
            return logits, every.gather(1, experts), experts
        logits, weights, experts = out
        if self.nulls is not None:
            count = self.num_experts
            logits, weights = logits[:, :count], weights.masked_fill(experts >= count, 0.0)
            experts = experts.clamp(max=count)
        weights, experts = (in_slices(values, self.slices) for values in (weights, experts))
        order = weights.argsort(dim=-1, descending=True, stable=True)
        return logits, weights.gather(-1, order).flatten(-2), experts.gather(-1, order).flatten(-2)

    def answer(self, out: tuple[Any, ...], weights: Tensor, experts: Tensor) -> tuple[Any, ...]:
        """``out`` with other ``weights`` and ``experts``, as the model takes them."""
        if len(out) == 2:
            every, logits = out
            return every.new_zeros(every.shape).scatter_add(1, experts, weights.to(every)), logits
        return out[0], weights.to(out[1].dtype), experts

    def rerouting(self, route: Route) -> Callable[..., Any]:
        """A hook for the chooser that replaces its weights and experts by those of ``route``."""

        def hook(_: Any, __: Any, out: tuple[Any, ...]) -> tuple[Any, ...]:
            return self.answer(out, *route(self, *self.read(out)))

        return hook

    def expert(self, number: int, tokens: Tensor) -> Tensor:
        """Outputs [T, H] of one expert for all ``tokens`` [T, H]."""
        count, first = len(tokens), next(self.experts.parameters())
        tokens = tokens.to(device=first.device, dtype=first.dtype)
        if self.rule.weighs_inputs:  # every expert has rows of its own
            padded = tokens.new_zeros(len(first), *tokens.shape)
            padded[number] = tokens
            outputs: Tensor = self.experts(padded.flatten(0, 1)).view_as(padded)[number]
            return outputs
        chosen = first.new_full((count, 1), number).long()
        outputs = self.experts(tokens, chosen, tokens.new_ones(count, 1))
        return outputs

    def watch(self, see: Callable[[Routed], None]) -> list[Any]:
        """Have ``see`` shown what the layer does from now on; returns the hooks to remove."""
        read: dict[str, Tensor] = {}

        def show(out: tuple[Any, ...], apart: Tensor | None) -> None:
            logits, weights, experts = self.read(out)
            inputs, logits = read.pop("router").flatten(0, -2), read.pop("logits", logits)
            see(
                Routed(
                    layer=self,
                    inputs=inputs,
                    logits=logits,
                    weights=weights,
                    experts=experts,
                    expert_inputs=apart,
                    null_logits=None if self.nulls is None else out[0][:, self.num_experts :],
                )
            )

        handles = [self.router.register_forward_pre_hook(lambda _, args: read.update(router=args[0]))]
        if self.router is not self.chooser and self.router in self.chooser.modules():  # which may give no logits
            handles.append(self.router.register_forward_hook(lambda _, __, out: read.update(logits=out)))
        if self.own_inputs:
            chosen: dict[str, Any] = {}
            return [
                *handles,
                self.chooser.register_forward_hook(lambda _, __, out: chosen.update(out=out)),
                self.experts.register_forward_pre_hook(lambda _, args: show(chosen.pop("out"), args[0])),
            ]
        handles.append(self.chooser.register_forward_hook(lambda _, __, out: show(out, read.pop("experts", None))))
        if getattr(self.block, "pool", None) is not None:
            handles.append(self.block.register_forward_pre_hook(lambda _, args: read.update(experts=args[0])))
        return handles


class LoadedMixture:
    """A loaded or outlined model and its MoE layers by number.

    Raises ``RoutingError`` where ``layout`` does not fit the model.
    """

    def __init__(self, model: nn.Module, layout: MoeLayout) -> None:
        config: Any = model.config
        values = config.to_dict()
        self.model, self.layout = model, layout.of(values)
        self.top_k = layout.top_k(values)
        self.stack = list(layer_stack(model, layout.layer).children())
        rule = self.layout.rule
        numbering = rule.numbering(rule.slices(values), self.layout.num_experts(values))
        self.groups, self.slices, self.tied = rule.group_counts(values), numbering.routers, numbering.tied
        self.layers = {n: self._layer(n) for n in layout.moe_layers(values)}

    def _layer(self, number: int) -> LoadedLayer:
        layout = self.layout
        places = layout.loaded_router, layout.loaded_experts, layout.loaded_experts.rpartition(".")[0]
        try:
            layer = self.stack[number]
            router, experts, block = map(layer.get_submodule, places)
            chooser = layer.get_submodule(layout.chooser) if layout.chooser else getattr(block, "routing", router)
        except (AttributeError, IndexError):
            name = layout.layer.format(layer=number) + places[0]
            raise RoutingError(f"{type(self.model).__name__} has no router {name!r}") from None
        return LoadedLayer(
            number=number,
            block=block,
            router=router,
            chooser=chooser,
            experts=experts,
            rule=layout.rule,
            own_inputs=layout.own_inputs,
            groups=self.groups,
            top_k=self.top_k,
            slices=self.slices,
            tied=self.tied,
            bias=_selection_bias(layer, layout),
            nulls=getattr(block, "nulls", None),
        )

    @contextmanager
    def rerouted(self, route: Route) -> Iterator[None]:
        """A while in which every layer that is here uses what ``route`` returns."""
        handles = []
        try:
            for layer in self.layers.values():
                if layer.is_here:
                    handles.append(layer.chooser.register_forward_hook(layer.rerouting(route)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def watched(self, see: Callable[[Routed], None]) -> Iterator[None]:
        """A while in which ``see`` is shown what every layer that is here does."""
        handles: list[Any] = []
        try:
            for layer in self.layers.values():
                if layer.is_here:
                    handles += layer.watch(see)
            yield
        finally:
            for handle in handles:
                handle.remove()


def mixtures_in(model: nn.Module, *, required: bool = True) -> dict[str, LoadedMixture]:
    """The mixtures that a module holds, by the path of each within it, the outermost model of each.

    Wrappings (PEFT, DistributedDataParallel, torch.compile) and modules that hold several models are looked through.
    Raises ``ConfigError`` where one is ``required`` and there is none.
    """
    found: dict[str, LoadedMixture] = {}
    for path, module in model.named_modules():
        if not any(not outer or path.startswith(f"{outer}.") for outer in found):
            layout = _layout_of(module)
            if layout is not None:
                found[path] = LoadedMixture(module, layout)
    if required and not found:
        raise ConfigError(
            f"{type(model).__name__} holds no mixture of experts",
            "pass the model that moeify upcycle made, or a module that holds it",
        )
    return found


def _layout_of(module: Any) -> MoeLayout | None:
    """Where a model has its mixtures, as its class says or by its type; None for other modules."""
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return None
    brought: MoeLayout | None = getattr(module, "moe_layout", None)
    values = module.config.to_dict()
    return brought or (moe_layout(values) if is_mixture(values) else None)


@contextmanager
def replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """A while in which ``forward`` is called in place of the module's own."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def base_model(model: nn.Module) -> nn.Module:
    """``model`` without its head."""
    base: nn.Module = getattr(model, "base_model", model)
    return base


def layer_stack(model: nn.Module, layer: str) -> nn.Module:
    """The module whose children are the layers, which are called ``layer`` in the text model."""
    path = layer.split(".{layer}")[0]
    base, root = base_model(model), path.split(".")[0]
    for name in ("", "model", "language_model", "language_model.model"):
        try:
            part = base.get_submodule(name)
        except AttributeError:
            continue
        if hasattr(part, root):
            return part.get_submodule(path)
    raise RoutingError(f"{type(model).__name__} has no layers {path!r}")


def is_encoder(model: nn.Module) -> bool:
    """Whether ``model`` has no cache to switch off."""
    config: Any = model.config
    return is_encoder_type(config.to_dict()) and not getattr(config, "is_decoder", False)


def _selection_bias(layer: nn.Module, layout: MoeLayout) -> Tensor | None:
    name = layout.loaded_selection_bias or layout.rule.selection_bias
    if name is None:
        return None
    path, _, last = name.rpartition(".")
    found: Tensor | None = getattr(layer.get_submodule(path), last, None)
    return found
