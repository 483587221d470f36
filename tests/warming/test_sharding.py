"""FSDP: two gloo processes that hold half of every weight do what one process does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from moeify.errors import ConfigError
from moeify.upcycling.upcycle import upcycle
from moeify.warming.warmup import warmup
from tests.warming.mixtures import FAST, changed, corpus, demo_mixture
from tests.warming.test_families import tiny

REPOSITORY = Path(__file__).parents[2]
SIZES = {"fit_tokens": 1024, "eval_tokens": 512, "learning_rate": 0.01, "fit": "kmeans"}
PORTS = iter(range(29680, 29700))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe", noise=0.3, layers="all")


def here(mixture, output, data, **options):
    return warmup(mixture, output, dataset=str(data), **{**FAST, **SIZES, **options})


def sharded(mixture, output, data, *flags, launching=(), **options):
    """``moeify warmup`` in two processes with FSDP, half a batch each, with the same options."""
    options = {**FAST, **SIZES, "batch": 2, "dataset": data, **options}
    words = [w for key, value in options.items() for w in (f"--{key.replace('_', '-')}", value)]
    launch = (
        "accelerate.commands.launch",
        "--use_fsdp",
        "--fsdp_version",
        2,
        "--num_processes",
        2,
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--fsdp_auto_wrap_policy",
        "TRANSFORMER_BASED_WRAP",
        "--main_process_port",
        next(PORTS),
        *launching,
    )
    words = [*launch, Path(__file__).with_name("fsdp_on_cpu.py"), "warmup", mixture, output, *words]
    settings = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words), *flags, "--json"],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def assert_same(folder, other, atol):
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in load_file(other / path.name).items():
            assert_close(tensors[name], tensor, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "launching", "atol"),
    [
        ({"loss": "distill"}, ("--fsdp_activation_checkpointing", "true"), 1e-6),
        ({"dtype": "bfloat16"}, (), 1e-6),
        ({"train": "moe"}, (), 1e-5),
    ],
    ids=["distill-activation-checkpointing", "bfloat16", "moe"],
)
def test_shards_are_trained_and_written_as_whole_weights(mixture, data, tmp_path, options, launching, atol):
    process = sharded(mixture, tmp_path / "two", data, launching=launching, steps=4, **options)
    expected = here(mixture, tmp_path / "one", data, steps=4, **options)
    found = done(process)
    for step, same in zip(expected.curve, found["curve"], strict=True):
        for key in ("loss", "task", "balance", "z"):
            assert same[key] == pytest.approx(step[key], abs=1e-4)
    for key in ("tokens", "steps", "max_violation_after", "entropy_after", "dead_after"):
        assert found[key] == pytest.approx(getattr(expected, key), abs=1e-6)
    assert found["eval_loss_after"] == pytest.approx(expected.eval_loss_after, abs=1e-4)
    assert changed(mixture, tmp_path / "two") == changed(mixture, tmp_path / "one") != set()
    assert_same(tmp_path / "one", tmp_path / "two", atol)


@pytest.mark.slow
def test_a_killed_sharded_run_resumes_to_the_same_routers(mixture, data, tmp_path):
    options = {"steps": 12, "save_steps": 2}
    expected = here(mixture, tmp_path / "one", data, **options)
    killed = sharded(mixture, tmp_path / "two", data, **options)
    run = tmp_path / "two.warmup"
    deadline = time.monotonic() + 200
    while not (run / "checkpoint-4" / "trainer_state.json").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in (*psutil.Process(killed.pid).children(recursive=True), killed):
        process.kill()
    killed.communicate()
    saved = sum(p.stat().st_size for p in (run / "checkpoint-4").rglob("*") if p.is_file())
    assert saved < 400_000, "routers and their optimizer, no frozen weights"
    with pytest.raises(ConfigError, match="other processes"):
        here(mixture, tmp_path / "two", data, **options, batch=2, resume=True)
    resumed = sharded(mixture, tmp_path / "two", data, "--resume", **options)
    assert len(done(resumed)["curve"]) < len(expected.curve)
    assert_same(tmp_path / "one", tmp_path / "two", 1e-6)
    assert not run.exists()


@pytest.mark.slow
def test_a_loss_that_becomes_nan_leaves_the_last_good_routers(mixture, data, tmp_path):
    process = sharded(mixture, tmp_path / "nan", data, steps=5, learning_rate=3e38)
    here(mixture, tmp_path / "fitted", data, steps=0)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert "the loss became nan at step 3" in err
    assert_same(tmp_path / "fitted", tmp_path / "nan", 1e-6)


@pytest.mark.parametrize(
    ("family", "version", "said", "hint"),
    [("qwen2", "1", "first version", "--fsdp_version 2"), ("bert", "2", "cannot shard a Bert", "torchrun")],
)
def test_what_cannot_be_sharded(family, version, said, hint, data, tmp_path, monkeypatch):
    upcycle(tiny(tmp_path / "dense", family), tmp_path / "moe", num_experts=4)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(ConfigError, match=said) as caught:
        here(tmp_path / "moe", tmp_path / "warm", data, steps=1)
    assert hint in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "moe"}
