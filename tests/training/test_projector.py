"""`MoeProjector`: what a trained projector computes, and then a mixture that learns."""

import pytest
import torch
from torch import nn

import moeify
from moeify.errors import ConfigError
from moeify.modeling.moe_layers import MoeFeedForward, balance_loss

SIZES = {"in": 96, "hidden": 64, "out": 40}


def linear(bias=True):
    return nn.Linear(SIZES["in"], SIZES["out"], bias=bias)


def mlp(activation=None, bias=True):
    first, last = (
        nn.Linear(SIZES["in"], SIZES["hidden"], bias=bias),
        nn.Linear(SIZES["hidden"], SIZES["out"], bias=bias),
    )
    return nn.Sequential(first, activation or nn.GELU(), last)


DENSE = {
    "linear": linear,
    "without bias": lambda: linear(bias=False),
    "mlp": mlp,
    "relu": lambda: mlp(nn.ReLU()),
    "bare mlp": lambda: mlp(nn.SiLU(), bias=False),
    "bfloat16": lambda: linear().bfloat16(),
}


@pytest.mark.parametrize("route_by", ["token", "sequence"])
@pytest.mark.parametrize("name", DENSE)
def test_equals_the_trained_projector_and_is_saved(name, route_by, tmp_path):
    torch.manual_seed(0)
    torch.compiler.reset()
    dense = DENSE[name]()
    inputs = torch.randn(3, 7, SIZES["in"], dtype=dense.state_dict()[next(iter(dense.state_dict()))].dtype)
    mask = torch.ones(3, 7)
    mask[-1, 4:] = 0
    projector = moeify.MoeProjector.from_linear(dense, noise=0.0, route_by=route_by)
    expected = dense(inputs)
    found = projector(inputs, mask, output_router_logits=True)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.projected, expected, rtol=0, atol=(1e-2 if name == "bfloat16" else 1e-6) * scale)
    assert torch.equal(projector(inputs, mask), found.projected)  # called as the layer that it replaces
    expected_loss = balance_loss(router_logits=found.router_logits, top_k=2, mask=mask.flatten())
    torch.testing.assert_close(found.aux_loss, expected_loss)
    assert found.router_logits[0].shape == (21, 4)
    if route_by == "sequence":
        per_row = found.router_logits[0].unflatten(0, (3, 7))
        assert torch.equal(per_row, per_row[:, :1].expand_as(per_row)) and not torch.equal(per_row[0], per_row[1])
    projector.save_pretrained(tmp_path)
    again = moeify.MoeProjector.from_pretrained(tmp_path)
    assert torch.equal(again(inputs, mask), found.projected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    traced = torch.compile(projector, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(inputs, mask), found.projected, rtol=0, atol=scale * 1e-2)


def test_noise_is_relative_seeded_and_apart_for_each_expert():
    dense = linear()
    experts = [
        moeify.MoeProjector.from_linear(dense, noise=0.05, seed=seed).layers[0].experts.down_proj for seed in (0, 0, 1)
    ]
    assert torch.equal(experts[0], experts[1]) and not torch.equal(experts[0], experts[2])
    away = (experts[0] - dense.weight).flatten(1)
    assert away.std(dim=1).tolist() == pytest.approx([0.05 * dense.weight.std().item()] * 4, rel=0.05)
    assert torch.corrcoef(away).fill_diagonal_(0).abs().max() < 0.1


def test_it_learns_what_one_layer_cannot():
    """Two clusters with a linear map of their own each; the layer of the models, with its router, tells them apart."""
    torch.manual_seed(0)
    inputs = torch.randn(256, SIZES["in"]) * 0.3
    inputs[::2, 0] += 4
    inputs[1::2, 0] -= 4
    maps = torch.randn(2, SIZES["in"], SIZES["out"]) / SIZES["in"] ** 0.5
    goal = torch.where(inputs[:, :1] > 0, inputs @ maps[0], inputs @ maps[1])
    losses = {}
    dense = linear()
    mixture = moeify.MoeProjector.from_linear(dense, num_experts=2, top_k=1)
    assert isinstance(mixture.layers[0], MoeFeedForward)
    for name, model in {"mixture": mixture, "dense": dense}.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        for _ in range(150):
            loss = (model(inputs) - goal).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[name] = loss.item()
    assert losses["mixture"] < losses["dense"] / 2


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (nn.Conv1d(2, 2, 1), {}, r"not of Conv1d\(Conv1d\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), {}, r"not of Sequential\(Linear, GELU\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.Threshold(1, 2), nn.Linear(2, 2)), {}, "no activation that computes"),
        (nn.Linear(2, 2), {"top_k": 5}, "between 1 and num_experts = 4"),
        (nn.Linear(2, 2), {"noise": -1}, "noise must be"),
        (nn.Linear(2, 2), {"route_by": "line"}, "route_by must be"),
    ],
)
def test_what_cannot_become_a_mixture_is_said(module, options, said):
    with pytest.raises(ConfigError, match=said):
        moeify.MoeProjector.from_linear(module, **options)


def test_a_quantised_layer_is_refused():
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(64, 64)
    packed.load_state_dict(nn.Linear(64, 64).state_dict())
    with pytest.raises(ConfigError, match="quantised"):
        moeify.MoeProjector.from_linear(packed.to("cpu"))
