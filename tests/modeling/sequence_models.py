"""Tiny models that route whole sequences."""

import torch

from tests.modeling.tiny_models import dense_model, upcycle, vary_experts

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def by_sequence(head, *, vary=True, **options):
    """A mixture that routes whole sequences, whose experts differ unless told otherwise."""
    sizes = {key: options.pop(key) for key in ("n_layer", "num_hidden_layers") if key in options}
    model = upcycle(dense_model(head, **sizes), route_by="sequence", **options)
    return vary_experts(model) if vary else model


def run(model, *args, **options):
    with torch.no_grad():
        return model(*args, **options)
