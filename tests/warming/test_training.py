"""Training as such: what holds memory, what survives a kill, what several processes compute."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from moeify.errors import ConfigError, OutputError
from moeify.families.registry import moe_layout
from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for
from moeify.routing.examples import Examples
from moeify.routing.loading import load_model
from moeify.warming.config import WarmupConfig
from moeify.warming.objective import Objective
from moeify.warming.report import WarmupReport
from moeify.warming.train import RouterTrainer, prepare, trainable
from moeify.warming.warmup import warmup
from tests.warming.mixtures import FAST, corpus, demo_mixture

REPOSITORY = Path(__file__).parents[2]
OPTIONS = [
    "--fit",
    "kmeans",
    "--device",
    "cpu",
    "--seq-len",
    "32",
    "--fit-tokens",
    "1024",
    "--eval-tokens",
    "512",
    "--json",
    "--learning-rate",
    "0.01",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe", noise=0.3)


def command(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    settings = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "moeify", "warmup", *OPTIONS, *map(str, arguments)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def here(mixture: Path, output: Path, data: Path, **options: object) -> WarmupReport:
    """The same as ``command``, in this process."""
    sizes = {"fit_tokens": 1024, "eval_tokens": 512, "learning_rate": 0.01, "fit": "kmeans"}
    return warmup(mixture, output, dataset=str(data), **{**FAST, **sizes, **options})


def routers(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= {n: t for n, t in load_file(path).items() if n.endswith("router.weight")}
    return tensors


def trainer(mixture, data, folder, **options):
    config = WarmupConfig(dataset=str(data), **{**FAST, "steps": 3, **options})
    model, tokenizer = load_model(mixture), tokenizer_for(mixture)
    layout = moe_layout(model.config.to_dict())
    prepare(model, layout, config.train)
    blocks = read_blocks(DataConfig(dataset=str(data)), tokenizer, 32, 8000)
    objective = Objective(loss="causal", layout=layout)
    examples = Examples(blocks, "causal", tokenizer, 0)
    return RouterTrainer(model, objective, examples, config, folder)


def test_frozen_tensors_have_no_gradient_no_state_and_no_copy(mixture, data, tmp_path):
    run = trainer(mixture, data, tmp_path / "run", save_steps=2)
    run.train()
    names = set(trainable(run.model))
    assert names == {f"transformer.h.{n}.mlp.router.weight" for n in (0, 2)}
    for name, parameter in run.model.named_parameters():
        assert (parameter.grad is None) or name in names
    in_state = {id(p) for p in run.optimizer.state}
    assert in_state == {id(p) for p in trainable(run.model).values()}
    routers = sum(p.nbytes for p in trainable(run.model).values())
    saved = sum(p.stat().st_size for p in (tmp_path / "run/checkpoint-2").iterdir())
    assert saved < 5 * routers + 40_000
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"checkpoint-2", "checkpoint-3"}


def test_what_moe_and_all_train(mixture, data, tmp_path):
    moe = set(trainable(trainer(mixture, data, tmp_path, train="moe").model))
    assert {name.split(".mlp.")[1].split(".")[0] for name in moe} == {"router", "experts"}
    everything = trainer(mixture, data, tmp_path, train="all").model
    assert set(trainable(everything)) == {name for name, _ in everything.named_parameters()}


def test_half_precision_models_have_float32_routers(mixture):
    model = load_model(mixture, "bfloat16")
    prepare(model, moe_layout(model.config.to_dict()), "routers")
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    for name, dtype in dtypes.items():
        wanted = torch.float32 if name.endswith("router.weight") else torch.bfloat16
        assert dtype == wanted, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_experts_of_half_precision_models_train(dtype, data, tmp_path):
    moe = demo_mixture(tmp_path / "moe", noise=0.3, dtype=dtype)
    report = here(moe, tmp_path / "warm", data, train="moe", steps=2)
    assert report.eval_loss_after < report.eval_loss_before
    before, after = load_model(moe), load_model(tmp_path / "warm")
    for name, parameter in after.named_parameters():
        assert parameter.dtype == getattr(torch, dtype), name
        assert torch.equal(parameter, before.get_parameter(name)) != (".experts." in name or ".router." in name), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_leaves_neither_hooks_nor_memory_behind(dtype, data, tmp_path):
    moe = demo_mixture(tmp_path / "moe", noise=0.3, dtype=dtype)
    with trainer(moe, data, tmp_path / "run", train="moe") as run:
        run.train()
        model, optimizer, whole = run.model, weakref.ref(run.optimizer), weakref.ref(run)
    del run
    gc.collect()
    assert optimizer() is None
    assert whole() is None
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_accumulated_micro_batches_do_what_one_batch_does(mixture, data, tmp_path):
    weights = []
    for batch, accumulate in ((8, 1), (4, 2)):
        run = trainer(
            mixture,
            data,
            tmp_path / str(accumulate),
            batch=batch,
            accumulate=accumulate,
            balance_coef=0.0,
            learning_rate=0.01,
        )
        run.train()
        weights.append([p.detach().clone() for p in trainable(run.model).values()])
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def alone(mixture, data, tmp_path_factory):
    """A run in one process, and the routers that it wrote."""
    output = tmp_path_factory.mktemp("alone") / "warm"
    return here(mixture, output, data, steps=4, batch=4), routers(output)


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29671"),
    "accelerate": (
        # By its option --cpu it starts one process; this is its way to start several anywhere.
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "29672",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_compute_what_one_does(mixture, data, alone, tmp_path, launcher):
    expected, routers_alone = alone
    two = command(
        mixture, tmp_path / "two", "--dataset", data, "--steps", 4, "--batch", 2, launcher=(*LAUNCHERS[launcher], "-m")
    )
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    found = json.loads(out)  # one document: only the first process reports
    for step, same in zip(expected.curve, found["curve"], strict=True):
        for key in ("loss", "task", "balance", "z"):
            assert same[key] == pytest.approx(step[key], abs=1e-4)
    assert found["tokens"] == expected.tokens
    for name, router in routers_alone.items():
        torch.testing.assert_close(router, routers(tmp_path / "two")[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_loss_that_becomes_nan_ends_with_exit_code_1_and_the_last_good_routers(mixture, data, tmp_path):
    here(mixture, tmp_path / "fitted", data, steps=0)
    arguments = ("--dataset", data, "--steps", 5, "--batch", 4, "--learning-rate", 3e38)
    failed = command(mixture, tmp_path / "nan", *arguments)
    out, err = failed.communicate(timeout=300)
    assert (failed.returncode, out) == (1, "")
    said, hint = err.strip().splitlines()
    # The rate rises from 0: the second step is the first that moves the routers.
    assert re.fullmatch(r"error: the loss became nan at step 3; .*last good weights", said)
    assert hint == "hint: pass a smaller --learning-rate than 3e+38"
    assert not (tmp_path / "nan.warmup").exists(), "nothing was saved that could be resumed"
    assert len(routers(tmp_path / "nan")) == 2
    for name, router in routers(tmp_path / "fitted").items():
        torch.testing.assert_close(router, routers(tmp_path / "nan")[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_routers(mixture, data, tmp_path):
    options = {"steps": 30, "save_steps": 3, "batch": 2}
    whole = here(mixture, tmp_path / "whole", data, **options)
    arguments = ("--dataset", data, "--steps", 30, "--save-steps", 3, "--batch", 2)
    killed = command(mixture, tmp_path / "killed", *arguments)
    run = tmp_path / "killed.warmup"
    deadline = time.monotonic() + 200
    while not (run / "checkpoint-6" / "trainer_state.json").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    with pytest.raises(OutputError, match="interrupted run") as caught:
        here(mixture, tmp_path / "killed", data, **options)
    assert "--resume" in caught.value.hint
    with pytest.raises(ConfigError, match="other options"):
        here(mixture, tmp_path / "killed", data, **{**options, "batch": 4}, resume=True)
    resumed = here(mixture, tmp_path / "killed", data, **options, resume=True)
    assert len(resumed.curve) < len(whole.curve) == 30
    assert resumed.eval_loss_after == pytest.approx(whole.eval_loss_after, abs=1e-6)
    for name, router in routers(tmp_path / "whole").items():
        torch.testing.assert_close(router, routers(tmp_path / "killed")[name], rtol=0, atol=1e-6)
    assert not run.exists()


def test_losses_are_logged_where_the_trainer_reports(mixture, data, tmp_path, monkeypatch):
    """Each step with what its loss is made of; TensorBoard's folder outlives the run's own."""
    logged, places = [], []

    class Recorder(TrainerCallback):
        logging_dir = None

        def on_log(self, args, state, control, logs, **_):
            logged.append(logs)
            places.append(self.logging_dir)

    with pytest.raises(ConfigError, match="needs the package 'wandb', which is not installed") as caught:
        here(mixture, tmp_path / "out", data, steps=2, report_to="wandb")
    assert caught.value.hint == "pip install -U wandb"
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    report = here(mixture, tmp_path / "out", data, steps=2, report_to="tensorboard")
    steps = [entry for entry in logged if "balance" in entry]
    assert [entry["task"] for entry in steps] == [entry["task"] for entry in report.curve]
    assert all(entry["learning_rate"] >= 0 for entry in steps)
    assert set(places) == {str(Path("runs", "out"))}
