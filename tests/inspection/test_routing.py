"""Depth 3: routing on text against NumPy on recorded logits, for every way of routing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from moeify.cli.app import app
from moeify.errors import ConfigError, DatasetError, RoutingError
from moeify.families.registry import moe_layout
from moeify.inspection.inspect import inspect
from moeify.modeling import REMOTE_CODE
from moeify.routing.collection import RoutedTokens, collect
from moeify.routing.data import block_length, read_blocks, tokenizer_for
from moeify.routing.loading import load_model
from moeify.routing.passes import WholeModel
from moeify.upcycling.upcycle import upcycle
from tests.families.published_models import BY_CLASS, EXPERTS, OWN, save, tiny
from tests.real.checkpoints import demo_gpt2
from tests.real.tiny_parts import write_byte_tokenizer

_CODE = "for i in range(10): print(i * i, end='') # squares, and 42 others\n"
_PROSE = "the man of the land had in that hand the and of his father and the other.\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [
        {"text": part * 6, "domain": name} for name, part in (("code", _CODE), ("prose", _PROSE)) for _ in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _routable(model_type: str, folder: Path, **options: Any) -> Path:
    """A model with varied routers and biases, and a tokenizer of single bytes."""
    folder.mkdir()
    size = write_byte_tokenizer(folder, "PreTrainedTokenizerFast", ["<|end|>"])
    model = tiny(model_type, tied=False, vocab_size=size, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            scale = 0.3 if "gate.weight" in name or "router" in name else 0.1
            if tensor.is_floating_point() and ("bias" in name or "weight" in name or "proj" in name):
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    if model_type in OWN:
        assert REMOTE_CODE[model_type]
    return save(model, folder)


class _Recorder:
    """The logits of every layer, and nothing that the product made of them."""

    def __init__(self) -> None:
        self.logits: dict[int, list[np.ndarray]] = {}

    def __call__(self, tokens: RoutedTokens) -> None:
        self.logits.setdefault(tokens.layer, []).append(tokens.logits.double().numpy().copy())


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _sparsemixer(logits: np.ndarray, eps: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """PhiMoE at inference: two softmaxes over what lies close enough to the best."""
    rows, chosen, weights, masked = np.arange(len(logits)), [], [], logits.copy()
    for _ in range(2):
        best = masked.argmax(1)
        top = masked[rows, best][:, None]
        factor = np.maximum(np.abs(logits), top)
        close = ((top - logits) / factor) <= 2 * eps
        part = _softmax(np.where(close & np.isfinite(masked), masked, -np.inf))
        chosen.append(best), weights.append(part[rows, best])
        masked[rows, best] = -np.inf
    return np.stack(chosen, 1), np.stack(weights, 1)


_GROUPED = {"deepseek_v3", "glm4_moe", "kimi_k2", "glm4_moe_lite", "dots1", "exaone_moe", "nemotron_h"}
_BIASED = {*_GROUPED, "minimax_m2", "lfm2_moe"}


def _oracle(logits: np.ndarray, bias: np.ndarray, model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """Load, gate mass, entropy, margin and pairs, from the papers' formulas."""
    top_k = next(config[key] for key in ("num_experts_per_tok", "moe_k", "moe_topk") if config.get(key))
    sigmoid = model_type in {*_BIASED, "llama4_text", "llama4", "cohere2_moe"}
    scores = 1 / (1 + np.exp(-logits)) if sigmoid else _softmax(logits)
    choice = scores + bias if model_type in {*_BIASED, "ernie4_5_moe"} else scores if sigmoid else logits
    if model_type == "deepseek_v2" or (model_type in _GROUPED and config.get("n_group") == 2):
        choice = scores if model_type == "deepseek_v2" else choice
        best = choice.reshape(len(choice), 2, 2)
        groups = best.max(-1) if model_type == "deepseek_v2" else best.sum(-1)
        keep = np.repeat(groups == groups.max(1, keepdims=True), 2, axis=1)
        choice = np.where(keep, choice, -np.inf)
    order = np.argsort(-choice, axis=1, kind="stable")
    chosen = order[:, :top_k]
    rows = np.arange(len(logits))
    if model_type == "phimoe":
        chosen, weights = _sparsemixer(logits)
    else:
        weights = np.take_along_axis(scores, chosen, 1)
        never = {"deepseek_v2", "llama4", "llama4_text", "jamba", "phimoe"}
        if model_type not in never and config.get("norm_topk_prob", True):
            weights = weights / weights.sum(1, keepdims=True)
    hits = np.zeros_like(logits)
    np.put_along_axis(hits, chosen, 1, 1)
    mass = np.zeros(EXPERTS)
    np.add.at(mass, chosen.ravel(), weights.ravel())
    p = scores / scores.sum(1, keepdims=True)
    rest = choice[rows, order[:, top_k]] if top_k < EXPERTS else np.full(len(rows), -np.inf)
    gaps = np.where(np.isfinite(rest), choice[rows, order[:, top_k - 1]] - rest, 0)
    load = hits.sum(0) / hits.sum()
    return {
        "load": load,
        "gate_mass": mass / mass.sum(),
        "entropy": -(p * np.log(p)).sum(1).mean() / np.log(EXPERTS),
        "max_violation": load.max() * EXPERTS - 1,
        "load_cv": (load * EXPERTS).std(),
        "margin": gaps.mean(),
        "pairs": (hits.T @ hits) / np.maximum(hits.sum(0), 1)[:, None],
    }


@pytest.mark.parametrize("model_type", BY_CLASS)
def test_statistics_equal_numpy_on_recorded_logits(model_type: str, tmp_path: Path, text: Path) -> None:
    folder = _routable(model_type, tmp_path / "model")
    report = inspect(folder, dataset=str(text), seq_len=48, batch=3)
    config = json.loads((folder / "config.json").read_text())
    section = config.get("text_config", config)
    layout = moe_layout(config)
    model, recorder = load_model(folder), _Recorder()
    options = _data(text)
    blocks = read_blocks(options, tokenizer_for(folder), block_length(config, 48), 50_000)
    collect(WholeModel(model), layout, blocks, recorder, batch_size=3)
    names = ("e_score_correction_bias", "expert_bias")
    biases = [t for n, t in (*model.named_parameters(), *model.named_buffers()) if n.endswith(names)]
    for place, layer in enumerate(report.layers):
        bias = biases[place].detach().flatten().double().numpy() if biases else np.zeros(EXPERTS)
        expected = _oracle(np.concatenate(recorder.logits[layer.layer]), bias, model_type, section)
        for key in ("load", "gate_mass", "entropy", "max_violation", "load_cv", "margin"):
            tolerance = 1e-6 if key in {"load", "entropy", "max_violation", "load_cv"} else 2e-6
            assert np.allclose(layer.routing[key], expected[key], atol=tolerance), key
        assert report.routing is not None
        pairs = np.array(report.routing["coactivation"][str(layer.layer)]["matrix"])
        off = ~np.eye(EXPERTS, dtype=bool)
        assert np.allclose(pairs[off], expected["pairs"][off], atol=1e-6)


def _data(text: Path, **options: Any) -> Any:
    from moeify.routing.config import DataConfig

    return DataConfig(dataset=str(text), **options)


def test_padding_never_counts(tmp_path: Path, text: Path) -> None:
    folder = _routable("qwen3_moe", tmp_path / "model")
    tokenizer = tokenizer_for(folder)
    rows = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    real = sum(len(tokenizer(row)["input_ids"]) + 1 for row in rows)
    report = inspect(folder, dataset=str(text), seq_len=50)
    assert report.routing is not None
    assert report.routing["tokens"] == real


def test_domains_and_vocabulary(tmp_path: Path, text: Path) -> None:
    folder = _routable("gpt2_moe", tmp_path / "model")
    options = {"dataset": str(text), "domain_column": "domain", "vocabulary": True, "seq_len": 48}
    report = inspect(folder, **options)
    assert report.routing is not None
    domains = report.routing["domains"]
    assert (domains["names"], domains["baseline"]) == (["code", "prose"], 0.5)
    assert sum(domains["tokens"]) == report.routing["tokens"]
    for layer in report.layers:
        found = np.array(layer.routing["domains"]["specialization"])
        assert np.allclose(found.sum(0), 2)
        weighted = found @ np.array(domains["tokens"]) / report.routing["tokens"] / 2
        assert np.allclose(weighted, layer.routing["load"], atol=1e-6)
        for tokens in layer.routing["vocabulary"]:
            assert all(0 < token["fraction"] <= 1 and token["count"] > 0 for token in tokens)
    json.dumps(report.to_dict(), allow_nan=False)


def test_vocabulary_counts_are_the_routers(tmp_path: Path, text: Path) -> None:
    from moeify.inspection.vocabulary import VocabularyCounts

    folder = _routable("gpt2_moe", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    blocks = read_blocks(_data(text), tokenizer_for(folder), 48, 2000)
    counts = VocabularyCounts(blocks)
    seen: list[tuple[int, int]] = []

    def both(tokens: RoutedTokens) -> None:
        counts(tokens)
        if tokens.layer == 2 and tokens.token_ids is not None:
            for token, experts in zip(tokens.token_ids.tolist(), tokens.experts.tolist(), strict=True):
                seen.extend((token, expert) for expert in experts)

    collect(WholeModel(load_model(folder)), moe_layout(config), blocks, both)
    for row, token in enumerate(counts.token_ids):
        for expert in range(EXPERTS):
            assert counts.counts[2][row, expert] == seen.count((int(token), expert))


def test_against_itself_is_saturated_and_against_another_is_not(tmp_path: Path, text: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "x", num_experts=4, seed=0)
    upcycle(demo_gpt2(), tmp_path / "y", num_experts=4, seed=1)
    same = inspect(tmp_path / "x", dataset=str(text), against=str(tmp_path / "x"))
    other = inspect(tmp_path / "x", dataset=str(text), against=str(tmp_path / "y"))
    assert same.routing is not None and other.routing is not None
    assert same.routing["against"]["saturation"] == 1
    assert other.routing["against"]["saturation"] < 0.8
    with pytest.raises(RoutingError, match="cannot be compared"):
        upcycle(demo_gpt2(), tmp_path / "z", num_experts=8)
        inspect(tmp_path / "x", dataset=str(text), against=str(tmp_path / "z"))


def test_collapse_is_flagged_and_balance_is_not(tmp_path: Path, text: Path) -> None:
    """Every layer sends all tokens to two experts of its own: even over all layers together."""
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=8)
    balanced = inspect(tmp_path / "moe", dataset=str(text))
    assert balanced.problems == []
    model = load_model(tmp_path / "moe")
    with torch.no_grad():
        for number, layer in enumerate(model.transformer.h):
            direction = layer.ln_2.bias + 0.1 * torch.ones_like(layer.ln_2.bias)
            rows = torch.zeros_like(layer.mlp.router.weight)
            rows[2 * number], rows[2 * number + 1] = 400 * direction, 399 * direction
            layer.ln_2.weight.mul_(0.01), layer.mlp.router.weight.copy_(rows)
    model.save_pretrained(tmp_path / "collapsed")
    for path in (tmp_path / "moe").glob("tokenizer*"):
        (tmp_path / "collapsed" / path.name).write_bytes(path.read_bytes())
    report = inspect(tmp_path / "collapsed", dataset=str(text))
    assert [problem.kind for problem in report.problems] == ["collapsed_routing"]
    assert all(layer.routing["max_violation"] == pytest.approx(3) for layer in report.layers)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dataset": "nowhere.jsonl"}, DatasetError),
        ({"dataset": "TEXT", "text_column": "other"}, DatasetError),
        ({"dataset": "TEXT", "domain_column": "other"}, DatasetError),
        ({"domain_column": "domain"}, ConfigError),
        ({"vocabulary": True}, ConfigError),
        ({"against": "x"}, ConfigError),
        ({"dataset": "TEXT", "seq_len": 4096}, ConfigError),
        ({"dataset": "TEXT", "max_tokens": 0}, ConfigError),
    ],
)
def test_bad_options(tmp_path: Path, text: Path, options: dict[str, Any], error: type[Exception]) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    options = {k: str(text) if v == "TEXT" else v for k, v in options.items()}
    with pytest.raises(error):
        inspect(tmp_path / "moe", **options)


def _shown(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str, columns: int = 100) -> Any:
    monkeypatch.setenv("COLUMNS", str(columns))
    return CliRunner().invoke(app, ["inspect", str(folder), *options])


def test_tables_fit(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    options = (
        "--weights",
        "--dataset",
        str(text),
        "--domain-column",
        "domain",
        "--vocabulary",
        "--fail-on",
        "maxvio>100",
    )
    for columns in (80, 120):
        done = _shown(monkeypatch, tmp_path / "moe", *options, columns=columns)
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stdout.splitlines())) <= columns
        assert "MaxVio" in done.stdout


def test_long_model_is_summarised(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _routable("qwen3_moe", tmp_path / "model", num_hidden_layers=20, mlp_only_layers=[])

    def rows(*options: str) -> list[str]:
        common = ("--weights", "--dataset", str(text), "--seq-len", "48")
        done = _shown(monkeypatch, folder, *common, *options)
        assert done.exit_code == 0, done.output
        assert ("--all shows all 20 layers" in done.stderr) == (not options)
        routing = done.stdout[done.stdout.index("routing of") :]
        table = routing[: routing.index("how to read")].splitlines()[2:]
        return [line.split()[0] for line in table if line]

    assert len(rows()) == 4 + 1
    assert rows("--all") == [*map(str, range(20)), "all"]
    assert rows("--layers", "3,5-6") == ["3", "5", "6", "all"]
