"""What the hooks see, against the model's own outputs and by hand, for every kind of mixture."""

import numpy as np
import pytest
import torch

from moeify.families.registry import MOE_LAYOUTS
from moeify.routing.collection import InputReservoir, RoutedTokens, collect
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedMixture
from moeify.routing.passes import WholeModel
from moeify.routing.statistics import RoutingStatistics
from tests.routing.tiny_mixtures import EXPERTS, HIDDEN, MODEL_TYPES, POSITIONS, TOP_K, VOCABULARY, mixture


def blocks(count: int = 5, seq_len: int = 16, padded: int = 5, domains: bool = True) -> Blocks:
    draw = np.random.default_rng(0)
    lengths = np.full(count, seq_len)
    lengths[-1] -= padded
    ids = draw.integers(1, VOCABULARY, (count, seq_len)).astype(np.int32)
    ids[-1, seq_len - padded :] = 0
    return Blocks(
        input_ids=ids,
        lengths=lengths,
        domains=np.arange(count) % 2 if domains else None,
        domain_names=("a", "b") if domains else (),
        documents=count,
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_records_equal_the_models_own_routing(model_type):
    model, data = mixture(model_type), blocks()
    seen: dict[int, list[RoutedTokens]] = {}
    layout = MOE_LAYOUTS[model_type]
    collect(WholeModel(model), layout, data, lambda r: seen.setdefault(r.layer, []).append(r), batch_size=2)
    assert not any(module._forward_hooks for module in model.modules()), "hooks are taken off"
    with torch.no_grad():
        inputs = data.inputs()
        expected = model(**inputs, output_router_logits=True).router_logits
    real = inputs["attention_mask"].flatten().bool()
    assert tuple(seen) == layout.moe_layers(model.config.to_dict())
    assert len(expected) == len(seen)
    for logits, records in zip(expected, seen.values(), strict=True):
        found = torch.cat([record.logits for record in records])
        torch.testing.assert_close(found, logits[real], rtol=1e-4, atol=1e-5)
        for record in records:
            assert record.inputs.shape == (len(record.logits), HIDDEN)
            torch.testing.assert_close(record.experts, record.logits.topk(TOP_K).indices)
            weights = record.logits.softmax(-1).gather(-1, record.experts)
            if getattr(model.config, "norm_topk_prob", True):
                weights = weights / weights.sum(-1, keepdim=True)
            torch.testing.assert_close(record.weights, weights)
            again = record.inputs @ LoadedMixture(model, layout).layers[record.layer].router.weight.detach().T
            torch.testing.assert_close(again, record.logits)


@pytest.mark.parametrize("model_type", ["bert_moe", "gpt2_moe"])
def test_whole_sequences_show_what_the_router_and_what_the_experts_read(model_type):
    model, data = mixture(model_type, route_by="sequence"), blocks()
    layout, records = MOE_LAYOUTS[model_type], []
    collect(WholeModel(model), layout, data, records.append, batch_size=5)
    lengths = data.lengths.tolist()
    for record in records:
        weight = LoadedMixture(model, layout).layers[record.layer].router.weight.detach()
        torch.testing.assert_close(record.inputs @ weight.T, record.logits)
        pooled, read = record.inputs.split(lengths), record.expert_inputs.split(lengths)
        for means, rows in zip(pooled, read, strict=True):
            so_far = rows.cumsum(0) / torch.arange(1, len(rows) + 1)[:, None]
            whole = rows.mean(0).expand_as(rows)
            torch.testing.assert_close(means, whole if model_type == "bert_moe" else so_far)
        if model_type == "bert_moe":
            assert all(len(part.unique(dim=0)) == 1 for part in record.experts.split(lengths))
    reservoir = InputReservoir(capacity=40)
    reservoir(records[0])
    torch.testing.assert_close(reservoir.expert_inputs(0), records[0].expert_inputs)
    assert set(map(tuple, reservoir.inputs(0).tolist())) <= set(map(tuple, records[0].inputs.tolist()))


@pytest.mark.parametrize("model_type", ["bert_moe", "qwen3_moe"])
def test_padding_never_counts(model_type):
    model, data = mixture(model_type), blocks(padded=9)
    other = blocks(padded=9)
    other.input_ids[-1, 16 - 9 :] = 77
    figures = []
    for part in (data, other):
        statistics = RoutingStatistics(2)
        collect(WholeModel(model), MOE_LAYOUTS[model_type], part, statistics)
        figures.append(statistics)
    assert figures[0].tokens == data.tokens == 5 * 16 - 9
    for layer, sums in figures[0].layers.items():
        np.testing.assert_array_equal(sums.tokens_per_expert, figures[1].layers[layer].tokens_per_expert)
        assert sums.tokens_per_domain.tolist() == [2 * 16 + 7, 2 * 16]
        assert len(sums.load) == EXPERTS
        assert sums.load.sum() == pytest.approx(1)


def test_statistics_do_not_depend_on_the_batch_size():
    model, data = mixture("gpt2_moe"), blocks()
    results = []
    for batch_size in (1, 5):
        statistics = RoutingStatistics()
        collect(WholeModel(model), MOE_LAYOUTS["gpt2_moe"], data, statistics, batch_size=batch_size)
        results.append(statistics)
    for layer, sums in results[0].layers.items():
        np.testing.assert_array_equal(sums.tokens_per_expert, results[1].layers[layer].tokens_per_expert)
        assert sums.entropy == pytest.approx(results[1].layers[layer].entropy, rel=1e-6)


def test_the_reservoir_is_bounded_uniform_and_the_same_in_every_layer():
    reservoir = InputReservoir(capacity=200, seed=3)
    for start in range(0, 4000, 250):
        rows = torch.arange(start, start + 250).float()[:, None]
        empty = torch.zeros(250, 1)
        for layer in (1, 4):
            reservoir(
                RoutedTokens(
                    layer=layer,
                    inputs=rows,
                    logits=empty,
                    experts=empty.long(),
                    weights=empty,
                    domains=rows[:, 0].long() % 3,
                )
            )
    kept = reservoir.inputs(1)[:, 0]
    assert len(kept) == 200 == len(set(kept.tolist()))
    assert reservoir.nbytes == 2 * 200 * 4
    torch.testing.assert_close(kept, reservoir.inputs(4)[:, 0])
    torch.testing.assert_close(reservoir.domains(1), kept.long() % 3)
    # The mean of 200 out of 0..3999 has standard deviation 1155 / sqrt(200) = 82.
    assert abs(kept.mean().item() - 2000) < 330
    quarters = torch.histc(kept, bins=4, min=0, max=4000)
    assert quarters.min() > 25


def test_blocks_fill_the_models_positions():
    model = mixture("bert_moe")
    statistics = RoutingStatistics()
    data = blocks(count=2, seq_len=POSITIONS, padded=1)
    collect(WholeModel(model), MOE_LAYOUTS["bert_moe"], data, statistics)
    assert statistics.tokens == 2 * POSITIONS - 1
