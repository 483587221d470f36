"""The source model with some experts' logits at minus infinity: what pruning must equal."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


def router_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Routers by layer: the modules beside an `experts` module that hold a weight [E, H]."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "experts") and (hasattr(module, "gate") or hasattr(module, "router")):
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            chooser = module.router if hasattr(module, "router") else module.gate
            found[layer] = next(part for part in chooser.modules() if hasattr(part, "weight"))
    return found


class _Masked(TorchFunctionMode):
    def __init__(self, dropped: Mapping[int, Sequence[int]]) -> None:
        self.dropped = dropped
        self.seen = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear and args[1].data_ptr() in self.dropped:
            self.seen += 1
            result[..., list(self.dropped[args[1].data_ptr()])] = -torch.inf
        return result


def masked_logits(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], dropped: Mapping[int, Sequence[int]]
) -> Tensor:
    """Logits of `model` when no token can choose the `dropped` experts of each layer."""
    routers = router_modules(model)
    assert routers.keys() == dropped.keys()
    kept_biases = []
    for layer, router in routers.items():
        for owner in (router, *_owners(model, router)):
            for name, buffer in [*owner.named_buffers(), *owner.named_parameters()]:
                if name.endswith("correction_bias") or name == "expert_bias":
                    kept_biases.append((buffer, buffer.detach().clone()))
                    buffer.data[..., list(dropped[layer])] = -torch.inf
    mode = _Masked({router.weight.data_ptr(): dropped[n] for n, router in routers.items()})
    with torch.no_grad(), mode:
        logits = model(**inputs).logits
    assert mode.seen == len(routers)
    for buffer, values in reversed(kept_biases):  # one may be there twice, masked already
        buffer.data.copy_(values)
    return logits


def _owners(model: PreTrainedModel, router: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if any(child is router for child in m.children())]
