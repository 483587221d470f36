"""A mixture of experts in the place of a trained projector, from one model's vectors to another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.generic import ModelOutput

from moeify.checkpoint.arithmetic import normal
from moeify.errors import ConfigError
from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.own import OWN_RULE, own_rule
from moeify.modeling.configuration_moe import CheckedOptions, MoeOptions
from moeify.modeling.moe_batch import CURRENT, RoutingBatch
from moeify.modeling.moe_experts import Outline
from moeify.modeling.moe_layers import MoeFeedForward, balance_loss, token_mask
from moeify.modeling.moe_models import ModelWithExperts
from moeify.modeling.moe_pooling import SequencePool
from moeify.routing.config import RouteBy
from moeify.routing.initialization import router_rows

_LAYOUT = MoeLayout(
    model_type="moe_projector",
    class_prefix="MoeProjector",
    experts=(),
    dims=lambda config: {"H": config["input_size"]},
    moe_layers=lambda config: (0,),
    rest=Rest(per_layer=(), outer=(), heads=(), tied={}),
    router="router.weight",
    norm=None,
    rule=OWN_RULE,
    rule_by=own_rule(""),
    encoder=True,
)


class MoeProjectorConfig(CheckedOptions, PreTrainedConfig, MoeOptions):  # type: ignore[misc]
    """Sizes of a projector, and the keys of ``MoeOptions``.

    ``hidden_size`` is the width of its hidden layer, None where it is one linear layer.
    """

    model_type = "moe_projector"
    _auto_class = None  # loaded by MoeProjector, which does not travel
    input_size: int = 1
    output_size: int = 1
    hidden_size: int | None = None
    hidden_act: str = "gelu"
    use_bias: bool = True
    initializer_range: float = 0.02
    num_hidden_layers: int = 1


@dataclass
class MoeProjectorOutput(ModelOutput):  # type: ignore[misc]
    """What a projector gives where router logits are asked for.

    ``projected`` [..., O], ``aux_loss`` the balance loss before its coefficient, ``router_logits`` ([N, E],).
    """

    projected: Tensor | None = None
    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class MoeProjector(ModelWithExperts):
    """A mixture of projectors: the MoE layer of moeify's own models, whose experts are linear layers or small MLPs.

    It is called as the layer it replaces and returns a tensor; ``save_pretrained`` and ``from_pretrained`` are those
    of every model, and ``train_only``, ``RoutingMonitor`` and ``quantize_experts`` find it in a larger module.
    """

    config_class = MoeProjectorConfig
    main_input_name = "hidden_states"
    moe_layout = _LAYOUT

    def __init__(self, config: MoeProjectorConfig) -> None:
        super().__init__(config)
        if config.null_experts:
            raise ConfigError("a MoeProjector has no null experts", "leave null_experts out")
        outline = Outline(
            hidden_size=config.input_size,
            output_size=config.output_size,
            ffn_size=config.hidden_size,
            activation=ACT2FN[config.hidden_act],
            biased=config.use_bias,
        )
        pool = SequencePool(causal=False, layer=0, num_layers=1) if config.route_by == "sequence" else None
        self.layers = nn.ModuleList([MoeFeedForward(config, outline, pool=pool)])
        self.post_init()

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_router_logits: bool | None = None
    ) -> Tensor | MoeProjectorOutput:
        """Map [..., H] to [..., O].

        Args:
            hidden_states: [N, H] or [B, S, H], the latter where routers decide for sequences.
            attention_mask: [B, S], nonzero for real vectors: the others are left out of a sequence's mean and of the
                balance loss.
            output_router_logits: whether to return ``MoeProjectorOutput``; None takes the config's.
        """
        wanted = self.config.output_router_logits if output_router_logits is None else output_router_logits
        batch = RoutingBatch(mask=attention_mask, logits=[] if wanted else None)
        token = CURRENT.enter(batch)
        try:
            projected: Tensor = self.layers[0](hidden_states)
        finally:
            CURRENT.leave(token)
        if not batch.logits:
            return projected
        logits = tuple(batch.logits)
        mask = token_mask(attention_mask, len(logits[0]))
        top_k = self.config.num_experts_per_tok
        balance = balance_loss(router_logits=logits, top_k=top_k, mask=mask, chosen=batch.chosen)
        return MoeProjectorOutput(projected=projected, aux_loss=balance, router_logits=logits)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear | nn.Sequential,
        num_experts: int = 4,
        top_k: int = 2,
        noise: float = 0.01,
        *,
        route_by: RouteBy = "token",
        seed: int = 0,
        **options: Any,
    ) -> MoeProjector:
        """Copies of a trained projector, and a calibrated router.

        Without noise the mixture computes what the projector does, whatever the router says; noise lets the experts
        part, and moves the output by about as much, relatively.

        Args:
            linear: a linear layer, or a Sequential of linear layer, activation and linear layer. It stays as it is.
            num_experts: E.
            top_k: K, experts that each vector visits.
            noise: standard deviation of what is added to each expert's weights, relative to the weights' own.
            route_by: what the router decides for: a ``"token"``, each vector by itself, or a ``"sequence"`` [S, H].
            seed: of the noise and the router.
            options: further keys of ``MoeProjectorConfig``, such as ``router_aux_loss_coef``.

        Raises:
            ConfigError: for another module, a quantised one, or numbers that cannot work.
        """
        first, last, activation = _parts(linear)
        if not noise >= 0:
            raise ConfigError(f"noise must be 0 or a positive number, not {noise!r}", "try noise=0.01")
        words: dict[str, Any] = {
            "num_experts": num_experts,
            "num_experts_per_tok": top_k,
            "route_by": route_by,
            "input_size": first.in_features,
            "output_size": last.out_features,
            "hidden_size": None if first is last else first.out_features,
            "hidden_act": activation,
            "use_bias": last.bias is not None,
        }
        try:
            config = MoeProjectorConfig(**words, **options)
        except ValueError as error:
            raise ConfigError(str(error), "pass other numbers to from_linear") from error
        projector: MoeProjector = cls(config).to(device=last.weight.device, dtype=last.weight.dtype)
        projector._fill(first, last, noise, seed)
        projector.train(linear.training)
        return projector

    @torch.no_grad()
    def _fill(self, first: nn.Linear, last: nn.Linear, noise: float, seed: int) -> None:
        """Make experts of trained layers, and a router that reads what the first one does."""
        layer: Any = self.layers[0]
        pairs = {"down_proj": last} if first is last else {"up_proj": first, "down_proj": last}
        for name, source in pairs.items():
            _copy(getattr(layer.experts, name), source.weight, noise, (seed, "projector", name))
            if source.bias is not None:
                getattr(layer.experts, f"{name}_bias")[:] = source.bias
        reader = first.weight.float().square().mean(dim=0).sqrt().cpu().numpy()
        key = (seed, "projector", "router")
        rows = router_rows("calibrated", self.config.num_experts, first.in_features, key, reader=reader)
        layer.router.weight.copy_(torch.from_numpy(rows))


def _parts(linear: nn.Module) -> tuple[nn.Linear, nn.Linear, str]:
    """The first and the last linear layer, one and the same if there is one, and the activation's name."""
    parts: list[Any] = list(linear) if isinstance(linear, nn.Sequential) else [linear]
    layers = [part for part in parts if isinstance(part, nn.Linear)]
    wrong = [part for part in layers if tuple(part.weight.shape) != (part.out_features, part.in_features)]
    if wrong:
        raise ConfigError("the projector is quantised", "give from_linear the projector as it was before")
    if len(parts) == len(layers) == 1:
        return layers[0], layers[0], "gelu"
    biases = {part.bias is None for part in layers}
    if len(parts) == 3 and len(layers) == 2 and layers == [parts[0], parts[2]] and len(biases) == 1:
        return layers[0], layers[1], _activation(parts[1])
    raise ConfigError(
        f"from_linear makes experts of a linear layer, or of Sequential(Linear, activation, Linear), not of"
        f" {type(linear).__name__}({', '.join(type(part).__name__ for part in parts)})",
        "pass the nn.Linear itself, merged if it has adapters (merge_and_unload)",
    )


def _activation(module: nn.Module) -> str:
    """What transformers calls a function that gives the same values."""
    points = torch.linspace(-4, 4, 33)
    for name in ACT2FN:
        try:
            if torch.equal(ACT2FN[name](points), module(points)):
                return str(name)
        except (RuntimeError, TypeError, ValueError, ImportError):
            continue
    raise ConfigError(f"transformers has no activation that computes what {module} does", "use nn.GELU() or nn.ReLU()")


def _copy(experts: Tensor, weight: Tensor, noise: float, key: tuple[int | str, ...]) -> None:
    """Fill ``experts`` [E, out, in] with ``weight``, noise added to each."""
    scale = np.float32(noise * float(weight.float().std()))
    for number, expert in enumerate(experts):
        expert.copy_(weight)
        if noise:
            drawn = normal((*key, number), weight.numel()) * scale
            expert.add_(torch.from_numpy(drawn).view_as(weight).to(expert))
