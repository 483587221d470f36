"""A loaded mixture of every type: each layer found, what it did, and what it may be told to do."""

import pytest
import torch

from moeify.families.registry import MOE_LAYOUTS
from moeify.routing.loaded import LoadedMixture, Routed
from tests.families.published_models import BY_CLASS, tiny


@pytest.mark.parametrize("model_type", BY_CLASS)
def test_every_layer_shows_what_the_model_used(model_type: str) -> None:
    model, layout = tiny(model_type, tied=False).eval(), MOE_LAYOUTS[model_type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mixture, seen = LoadedMixture(model, layout), list[Routed]()
    inputs = {"input_ids": torch.arange(3, 15).view(2, 6)}
    with torch.no_grad():
        with mixture.watched(seen.append):
            expected = model(**inputs).logits
        assert [routed.layer.number for routed in seen] == list(mixture.layers)
        with mixture.rerouted(lambda layer, logits, weights, experts: (weights, experts)):
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)
        with mixture.rerouted(lambda layer, logits, weights, experts: (0 * weights, experts)):
            assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)
        assert torch.equal(model(**inputs).logits, expected), "hooks are taken off"
    for routed in seen:
        layer = routed.layer
        assert layer.is_here and routed.experts.shape == (12, layer.top_k)
        assert (routed.weights.diff(dim=-1) <= 0).all()
        found = layer.probabilities(routed.logits)
        assert torch.allclose(found.sum(-1), torch.ones(12), atol=1e-5)
        best = layer.choice(routed.logits)["selection"]
        if layout.rule.scores != "sparsemixer":
            best = routed.logits if best is None else best
            assert torch.equal(best.topk(layer.top_k).indices.sort().values, routed.experts.sort().values)
        inputs = routed.inputs if routed.expert_inputs is None else routed.expert_inputs
        outputs = [layer.expert(n, inputs) for n in range(layer.num_experts)]
        assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
