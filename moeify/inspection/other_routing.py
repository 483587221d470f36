"""What a text would cost if its tokens were routed otherwise, and what experts with less room would leave out."""

from __future__ import annotations

from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.families.mixture import Mixture
from moeify.families.registry import vocabulary_size
from moeify.families.values import Config
from moeify.inspection.config import InspectConfig
from moeify.routing.alternatives import Alternatives
from moeify.routing.capacity import Capacity
from moeify.routing.data import Blocks
from moeify.routing.examples import Examples, loss_with_head
from moeify.routing.held_out import BlockLosses, Estimate, Reading, read_held_out
from moeify.routing.passes import passes_over


def loss_of(config: Config) -> str:
    """The loss that the class of a mixture has; raises ``ConfigError`` where it predicts no tokens."""
    return loss_with_head(config, "leave --routing and --capacity-factor out")


def other_losses(
    checkpoint: Checkpoint, mixture: Mixture, blocks: Blocks, tokenizer: Any, config: InspectConfig
) -> dict[str, Any]:
    """Losses by rule and with a capacity, in nats per predicted token, all in one walk over the text."""
    layout = mixture.layout
    loss, seed = loss_of(checkpoint.config), config.data.seed
    examples = Examples(blocks, loss, tokenizer, seed, vocabulary_size(checkpoint.config))
    others = Alternatives(rules=config.routing, copies=mixture.numbering.copies, blocks=blocks, seed=seed)
    capacity = None if config.capacity_factor is None else Capacity(config.capacity_factor)
    limited = [] if capacity is None else [Reading(route=capacity)]
    with passes_over(checkpoint, layout, low_memory=config.low_memory, head=True) as passes:
        learned, *read = read_held_out(
            passes, layout, examples, [Reading(), *limited, *others.readings()], batch_size=config.batch
        )
    found: dict[str, Any] = {**_figures(learned.estimate(), "learned"), "rules": {}, "capacity": None}
    if capacity is not None:
        found["capacity"] = _capacity(capacity, learned, read.pop(0))
    for name, rule in others.losses(learned, read).items():
        found["rules"][name] = {**_above(learned, rule.above), "expert": rule.expert}
    return found


def _figures(estimate: Estimate, name: str) -> dict[str, float | None]:
    error = estimate.error
    return {name: _round(estimate.value), f"{name}_error": None if error is None else _round(error)}


def _above(learned: BlockLosses, above: Estimate) -> dict[str, float | None]:
    """A loss, and how far it is above the routers' with the standard error of that."""
    return {"loss": _round(learned.mean() + above.value), **_figures(above, "change")}


def _capacity(capacity: Capacity, learned: BlockLosses, found: BlockLosses) -> dict[str, Any]:
    dropped = capacity.dropped()
    tokens, assignments = (sum(shares) / max(len(dropped), 1) for shares in zip(*dropped.values(), strict=True))
    return {
        "factor": capacity.factor,
        "tokens_dropped": _round(tokens),
        "assignments_dropped": _round(assignments),
        "layers": {str(n): {"tokens": _round(t), "assignments": _round(a)} for n, (t, a) in dropped.items()},
        **_above(learned, found.above(learned)),
    }


def _round(value: float) -> float:
    """Eight significant digits, as for all that is routed."""
    return float(f"{value:.8g}")
