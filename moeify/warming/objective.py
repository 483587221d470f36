"""What a mixture is trained on besides balance, by its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeify.errors import ConfigError
from moeify.families.moe_layout import MoeLayout
from moeify.routing.examples import text_loss
from moeify.routing.head import headless
from moeify.routing.held_out import distances, predictions
from moeify.routing.loaded import LoadedMixture, base_model, is_encoder
from moeify.routing.routes import all_experts
from moeify.routing.running import run_model
from moeify.warming.config import Loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def choose_loss(architecture: str, loss: Loss, steps: int) -> Loss:
    """The loss for a class; raises ``ConfigError`` where the class cannot have it."""
    fitting: Any = text_loss(architecture) or ("distill" if architecture.endswith("Model") else None)
    if loss == "distill":
        return loss
    if loss == "auto":
        if fitting is None and steps:
            raise ConfigError(
                f"{architecture} has a head for which text alone gives no loss",
                "pass --loss distill to learn the dense function, or --steps 0 to fit only",
            )
        return fitting or "distill"
    if loss != fitting:
        raise ConfigError(
            f"{architecture} has no head for the {loss} loss",
            f"pass --loss {fitting or 'distill'}, or leave --loss out",
        )
    return loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The task loss of a model. ``teacher`` is a dense model for ``distill``, None for the mean
    of the experts."""

    loss: Loss
    layout: MoeLayout
    teacher: nn.Module | None = None

    def goal(self, model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
        """What ``distill`` compares with: the teacher's last hidden states [B, S, H], float32.

        ``model`` is what is called (it may be wrapped for several processes), ``mixture`` the
        model inside.
        """
        import torch

        if self.loss != "distill":
            return None
        with torch.no_grad():
            if self.teacher is not None:
                found: Tensor = run_model(base_model(self.teacher), **_inputs(batch))[0].float()
                return found
            with LoadedMixture(mixture, self.layout).rerouted(all_experts()):
                return _last_hidden(model, mixture, batch)

    def losses(
        self, model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor], goal: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every token, 0 where it has no label, and which have one; both [B, S]."""
        if goal is not None:
            real = batch["attention_mask"].bool()
            return distances(_last_hidden(model, mixture, batch), goal, real), real
        cached = {} if self.loss == "masked" else {"use_cache": False}
        return predictions(
            mixture, self.loss, batch["labels"], lambda: run_model(model, **_inputs(batch), **cached, return_dict=True)
        )


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _last_hidden(model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Through the wrapper, which has to see the parameters that are used."""
    # A cache would grow once more where a layer runs again.
    inputs = {**_inputs(batch), **({} if is_encoder(mixture) else {"use_cache": False})}
    if base_model(mixture) is mixture:
        states: Tensor = run_model(model, **inputs)[0]
        return states.float()
    with headless(mixture):
        out = run_model(model, **inputs, output_hidden_states=True)
    states = out.hidden_states[-1]
    return states.float()
