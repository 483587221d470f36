"""What a warm-up could not train or not write, found before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.errors import CheckpointError, ConfigError
from moeify.families.mixture import Mixture
from moeify.modeling import REMOTE_CODE
from moeify.routing.loaded import LoadedMixture
from moeify.routing.trained import wanted
from moeify.warming.balances import BALANCES
from moeify.warming.config import WarmupConfig


def learns_from_task(view: Mixture) -> bool:
    """Whether the task gives routers a gradient."""
    return view.layout.rule.learns_from_outputs(view.checkpoint.config, view.top_k)


def balances(view: Mixture, config: WarmupConfig) -> bool:
    """Whether the balance loss gives routers a gradient."""
    through = BALANCES[config.balance].through if config.balance_coef else "nothing"
    return through == "probabilities" or (through == "gates" and learns_from_task(view))


def check_trainable(view: Mixture, config: WarmupConfig) -> None:
    """Raise where routers would get no gradient, or trained weights could not be stored.

    ``ConfigError`` for the former, ``CheckpointError`` for the latter.
    """
    if not config.steps:
        return
    if BALANCES[config.balance].shifts_bias and view.layout.rule.selection_bias is None:
        model_type = view.layout.model_type
        own = model_type in REMOTE_CODE
        raise ConfigError(
            f"the routers of {'this' if own else 'a'} {model_type} have no bias that experts are chosen with",
            "moeify upcycle --router-bias makes them with one, and moeify attach --router-bias fresh ones"
            if own
            else "pass --balance switch",
        )
    nulls = view.layout.rule.null_experts(view.config)
    if config.null_rate is not None and not nulls:
        raise ConfigError("this mixture has no null experts", "leave --null-rate out, or upcycle with --null-experts")
    reached = learns_from_task(view) or balances(view, config) or config.z_coef
    if config.train == "routers" and not reached:
        constant = config.balance_coef and BALANCES[config.balance].through == "gates"
        raise ConfigError(
            "nothing would train the routers: the weight of one renormalised expert is 1 whatever"
            f" they say, and balance and z-loss are {'made of it or ' * bool(constant)}off",
            "pass --balance switch, or --steps 0 to fit routers without training",
        )
    if config.train == "routers":
        return
    for stored in _trained(view, config):
        if stored.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor {stored.name!r} has dtype {stored.dtype}, in which trained weights cannot be written",
                "pass --train routers, or warm up the unquantised checkpoint",
                path=stored.path,
            )


def _trained(view: Mixture, config: WarmupConfig) -> Iterator[StoredTensor]:
    """The tensors that training changes, besides routers."""
    if config.train == "all":
        buffers = view.layout.rest.buffers
        yield from (t for t in view.checkpoint.tensors.values() if not t.name.endswith(buffers))
        return
    for layer in view.moe_layers:
        for spec in view.layout.experts:
            for expert in (0,) if spec.fused else range(view.num_experts):
                yield from (part.tensor for part in view.expert(layer, spec, expert))


def check_names(view: Mixture, model: Any, config: WarmupConfig) -> None:
    """Raise ``CheckpointError`` where what is trained has no place in the checkpoint."""
    if config.train == "routers":
        return
    from moeify.warming.stored_form import in_stored_form

    names = wanted(model, LoadedMixture(model, view.layout).layers.values(), config.train)
    weights = {n: p.detach().to("meta") for n, p in model.named_parameters() if n in names}
    tensors = view.checkpoint.tensors
    for name, weight in in_stored_form(model, weights, tensors).items():
        stored = tensors.get(name)
        if stored is None or stored.shape != tuple(weight.shape):
            what = "does not hold it" if stored is None else f"holds it as {list(stored.shape)}"
            raise CheckpointError(
                f"training would change {name!r} of shape {list(weight.shape)}, and the checkpoint {what}",
                "pass --train routers, or save the checkpoint anew with save_pretrained",
                path=view.checkpoint.folder,
            )
