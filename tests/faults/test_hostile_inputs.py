"""Hostile headers, indexes, configs, records, scores and tokenizers: read or refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeify.checkpoint.header import encode_header, read_header
from tests.faults.fuzz import fuzz
from tests.faults.hostile_seeds import INDEX, Seed, write_seeds
from tests.faults.in_process import moeify
from tests.faults.mutations import KEYS, MODEL_TYPES, NAMES, VALUES
from tests.faults.trial import Bench, Tally, commands_for

INPUTS, LOADED = 400, 20


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return write_seeds(tmp_path_factory.mktemp("seeds"))


def copied(seeds: list[Seed], name: str, place: Path) -> Path:
    """A copy of a seed's folder that may be changed."""
    base = next(s.folder for s in seeds if s.folder.name == name)
    return Path(shutil.copytree(base, place / "case"))


@pytest.fixture
def bench(tmp_path: Path, seeds: list[Seed], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("MOEIFY_DEBUG", "1")
    return Bench(tmp_path, seeds, Tally())


def test_what_is_sound_is_accepted(bench: Bench, seeds: list[Seed]) -> None:
    """Else everything below would be refused for another reason."""
    for seed in [s for s in seeds if s.target == "config.json"][::3]:
        bench.lay(seed, (seed.folder / seed.target).read_bytes())
        for command in dict.fromkeys(commands_for(seed, random.Random(n), 0)[0] for n in range(6)):
            bench.run(command, seed, "sound")
    assert bench.tally.failures == {}
    assert bench.tally.accepted >= 0.8 * bench.tally.trials


@pytest.mark.slow
def test_mutated_files(bench: Bench, seeds: list[Seed]) -> None:
    fuzz(bench, seeds, 0, INPUTS, loading=0)
    assert bench.tally.failures == {}
    assert bench.tally.rejected > INPUTS // 4 and bench.tally.accepted > INPUTS // 10


@pytest.mark.slow
def test_mutated_files_of_what_loads_models(bench: Bench, seeds: list[Seed]) -> None:
    bench.warm(seeds)
    fuzz(bench, seeds, 10_000, LOADED, loading=1, target="tokenizer")
    fuzz(bench, seeds, 20_000, LOADED // 2, loading=1, target="config.json")
    assert bench.tally.failures == {}


_SCALARS = st.sampled_from([v for v in VALUES if not isinstance(v, dict | list)])
_NAMED = st.sampled_from([*KEYS, *NAMES])
_ANY = st.recursive(
    _SCALARS | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMED, inner, max_size=5),
    max_leaves=12,
)
_CONFIGS = st.fixed_dictionaries(
    {"model_type": st.sampled_from(MODEL_TYPES)}, optional=dict.fromkeys(KEYS[1:40], _ANY)
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(document=st.one_of(_CONFIGS, st.dictionaries(_NAMED, _ANY)), choice=st.randoms())
def test_generated_documents(bench: Bench, seeds: list[Seed], document: object, choice: random.Random) -> None:
    bench.tally.failures.clear()
    plain = [s for s in seeds if s.target in ("config.json", INDEX, "moeify.json", "scores.json")]
    seed = choice.choice(plain)
    text = json.dumps(document, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
    bench.lay(seed, text)
    for command in commands_for(seed, choice, 0):
        bench.run(command, seed, "generated")
    assert bench.tally.failures == {}


# What the fuzzers found, each by its name.
@pytest.mark.parametrize(
    ("target", "change", "said"),
    [
        ("config.json", {"model_type": ["bert"]}, "model_type must be text"),
        ("config.json", {"architectures": 7}, "architectures must be a list of names"),
        ("config.json", {"layer_types": [["x"]]}, "layer_types must be a list of names"),
        ("config.json", {"mlp_only_layers": ["a", 1]}, "mlp_only_layers must be a list of layer"),
        ("config.json", {"n_layer": 2_000_000_000, "num_hidden_layers": 2_000_000_000}, "up to"),
        ("config.json", {"num_experts": 2_000_000_000}, "up to 100000"),
        (INDEX, {"weight_map": {"x": "x" * 5000}}, "longer than the 255 bytes"),
        (INDEX, {"weight_map": {"x": "é" * 200}}, "longer than the 255 bytes"),
        (INDEX, {"weight_map": {"x": "a\u0000b"}}, "leads out"),
        ("scores.json", {"batches": float("inf")}, "damaged"),
        ("scores.json", {"layers": {"x" * 9: {}}}, "damaged"),
        ("scores.json", {"layers": {}}, "scores of no layer, not of layers 0"),
        ("tokenizer.json", {"version": "a\nb"}, "no tokenizer"),
        ("tokenizer.json", {"model": 3}, "no tokenizer"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "tokenizer"),
        ("tokenizer_config.json", {"added_tokens_decoder": "x"}, "tokenizer"),
    ],
)
def test_found_by_fuzzing(
    seeds: list[Seed], tmp_path: Path, target: str, change: dict[str, object], said: str
) -> None:
    folder = copied(seeds, "scored", tmp_path)
    document = json.loads((folder / target).read_text())
    (folder / target).write_text(json.dumps({**document, **change}))
    text = seeds[0].folder.parent / "text.txt"
    out = tmp_path / "out"
    lines: dict[str, list[object]] = {
        "scores.json": ["prune", folder, out, "--keep", 2, "--by", "reap", "--scores", folder / target],
        "tokenizer.json": ["warmup", folder, out, "--dataset", text],
        "tokenizer_config.json": ["prune", folder, out, "--keep", 2, "--dataset", text],
    }
    done = moeify(*lines.get(target, ["prune", folder, out, "--keep", 2, "--by", "random"]))
    assert done.code == 1 and "bug in moeify" not in done.err, done.text
    assert said in done.err and not out.exists()


# Configs that pass for sound until a model is made of them or run; None takes a key away.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command", "change", "said"),
    [
        (
            "gpt2",
            "verify",
            {"model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"]},
            "a model of more than",
        ),
        ("gpt2", "verify", {"n_inner": 50_000_000}, "a model of more than"),
        ("qwen3", "upcycle --router", {"model_type": "llama4_text"}, "not supported"),
        ("qwen3", "upcycle --router", {"head_dim": 50_000_000}, "config.json says [2000"),
        ("qwen3-moe", "inspect --dataset", {"head_dim": 50_000_000}, "a model of more than"),
        ("qwen3-moe", "warmup", {"head_dim": 50_000_000}, "of another shape than"),
        ("qwen3-moe", "prune --dataset", {"head_dim": 50_000_000}, "of another shape than"),
        ("qwen3-moe", "inspect --dataset", {"num_experts_per_tok": None}, "8 experts of 4"),
        ("gpt2", "verify", {"embd_pdrop": float("nan")}, "cannot run: dropout"),
        ("gpt2", "upcycle --router", {"embd_pdrop": float("nan")}, "cannot run: dropout"),
        ("gpt2-moe", "inspect --dataset", {"embd_pdrop": float("nan")}, "cannot run: dropout"),
        ("gpt2-moe", "warmup", {"embd_pdrop": float("nan")}, "cannot run: dropout"),
        ("gpt2-moe", "prune --dataset", {"embd_pdrop": float("nan")}, "cannot run: dropout"),
    ],
)
def test_models_that_cannot_be_made_or_run(
    bench: Bench, seeds: list[Seed], name: str, command: str, change: dict[str, object], said: str
) -> None:
    bench.warm(seeds)
    seed = next(s for s in seeds if s.folder.name == name and s.target == "config.json")
    document = json.loads((seed.folder / seed.target).read_text()) | change
    left = {key: value for key, value in document.items() if value is not None}
    bench.lay(seed, json.dumps(left).encode())
    bench.run(command, seed, said)
    assert bench.tally.failures == {}
    assert said in bench.tally.last
    assert bench.tally.rejected == 1


def test_a_router_of_another_shape_is_a_finding(seeds: list[Seed], tmp_path: Path) -> None:
    folder = copied(seeds, "scored", tmp_path)
    for path in folder.glob("*.safetensors"):
        stored = sorted(read_header(path)[0].values(), key=lambda t: t.start)
        listed = [(t.name, t.dtype, (t.elements,) if t.name.endswith("router.weight") else t.shape) for t in stored]
        path.write_bytes(encode_header(listed) + path.read_bytes()[stored[0].start :])
    done = moeify("inspect", folder, "--weights", "--json")
    assert done.code == 3, done.text
    (problem,) = json.loads(done.out)["problems"]
    assert "router" in problem["message"]


@pytest.mark.parametrize(
    ("name", "command", "target", "change", "said"),
    [
        ("qwen2", "upcycle --router", "tokenizer_config.json", {"model_max_length": "long"}, "cannot read the text"),
        (
            "qwen2-moe",
            "warmup",
            "tokenizer.json",
            {"model": {"type": "WordLevel", "vocab": {"[UNK]": 1, "the": 1 << 31}, "unk_token": "[UNK]"}},
            "makes token 2147483648",
        ),
    ],
)
def test_tokenizers_that_cannot_read_a_text(
    bench: Bench, seeds: list[Seed], name: str, command: str, target: str, change: dict[str, object], said: str
) -> None:
    seed = next(s for s in seeds if s.folder.name == name and s.target == target)
    document = json.loads((seed.folder / target).read_text()) | change
    bench.lay(seed, json.dumps(document).encode())
    bench.run(command, seed, said)
    assert not bench.tally.failures.keys() - {"memory"}  # of imports, where this test runs first
    assert said in bench.tally.last


def test_a_mixture_without_architectures_has_a_card(seeds: list[Seed], tmp_path: Path) -> None:
    folder = copied(seeds, "bert-moe", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert moeify("attach", folder, tmp_path / "out").code == 0
