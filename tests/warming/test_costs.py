"""What a warm-up costs: logits in parts, activations within bounds, few passes for its figures."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from moeify.checkpoint.reader import Checkpoint
from moeify.families.registry import moe_layout
from moeify.routing import head, memory
from moeify.routing.collection import InputReservoir
from moeify.routing.head import IGNORED
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.warming import session
from moeify.warming.activations import bound_activations
from moeify.warming.headroom import expert_difference
from moeify.warming.objective import Objective
from moeify.warming.train import prepare, trainable
from moeify.warming.warmup import warmup
from tests.warming.mixtures import DEMO, FAST, corpus, demo_mixture


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe", noise=0.3)


@pytest.fixture
def model(mixture):
    loaded = load_model(mixture)
    prepare(loaded, moe_layout(loaded.config.to_dict()), "routers")
    return loaded


def batch(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (3, 32), generator=generator)
    mask = torch.ones_like(ids)
    mask[2, 20:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def held_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor], loss="causal"):
    """Loss, gradients, and the bytes that autograd held between forward and backward pass."""
    objective = Objective(loss=loss, layout=moe_layout(model.config.to_dict()))
    goal = objective.goal(model, model, inputs)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        losses, labelled = objective.losses(model, model, inputs, goal)
    loss = losses.sum() / labelled.sum()
    loss.backward()
    weights = sum(p.nbytes for p in model.parameters())
    gradients = [p.grad.clone() for p in trainable(model).values()]
    return loss.detach(), gradients, sum(kept.values()) - weights


@pytest.mark.parametrize("trained", ["routers", "all"])
def test_losses_in_parts_are_those_of_whole_logits(mixture, monkeypatch, trained):
    model = load_model(mixture).eval()
    prepare(model, moe_layout(model.config.to_dict()), trained)
    inputs = batch(model)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    expected.backward()
    gradients = [p.grad.clone() for p in trainable(model).values()]
    model.zero_grad()
    monkeypatch.setattr(head, "_LOGITS_BYTES", 4 * 7 * model.config.vocab_size)
    found, others, _ = held_bytes(model, inputs)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)
    for one, two in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    assert "forward" not in vars(model.lm_head)


def test_a_class_that_changes_its_logits_has_the_loss_of_what_it_gives(model):
    inputs = batch(model)
    original = type(model).forward

    class Halved(type(model)):
        def forward(self, *args, **options):
            out = original(self, *args, **options)
            out["logits"] = out["logits"] / 2
            return out

    model.__class__ = Halved
    objective = Objective(loss="causal", layout=moe_layout(model.config.to_dict()))
    with torch.no_grad():
        losses, labelled = objective.losses(model, model, inputs, None)
        logits = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    torch.testing.assert_close(losses.sum() / labelled.sum(), expected)


@pytest.mark.parametrize("task", ["causal", "distill"])
def test_layers_without_room_run_again_and_train_the_same(model, task):
    inputs = batch(model)
    layout = moe_layout(model.config.to_dict())
    found = []
    for room in (1 << 40, 0):
        one = copy.deepcopy(model)
        prepare(one, layout, "routers")
        with bound_activations(one, layout, room):
            found.append(held_bytes(one, inputs, task))
    (loss, gradients, everything), (again, others, little) = found
    torch.testing.assert_close(again, loss)
    for one, two in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, two)
    if task == "distill":  # runs no head, whose own share would hide what layers hold
        assert little < everything / 2


def test_kept_inputs_have_the_models_dtype():
    reservoir = InputReservoir(capacity=64)
    rows = torch.randn(50, 8).bfloat16()
    reservoir.add(0, rows, None)
    assert reservoir.nbytes == 64 * 8 * 2
    torch.testing.assert_close(reservoir.inputs(0), rows.float(), rtol=0, atol=0)


def test_measuring_takes_three_passes_and_a_part_for_each_expert(mixture, tmp_path, monkeypatch):
    from moeify.warming.session import Session

    tokens = []

    def load(session: Session) -> None:
        original(session)
        layer = next(iter(LoadedMixture(session.model, session.view.layout).layers.values())).router
        layer.register_forward_hook(lambda _, args, out: tokens.append(args[0].numel()))

    original = Session.load_mixture
    monkeypatch.setattr(Session, "load_mixture", load)
    data, options = corpus(tmp_path), {**FAST, "eval_tokens": 4096, "fit": "kmeans", "steps": 0}
    report = warmup(mixture, tmp_path / "warm", dataset=str(data), **options)
    hidden = load_model(mixture).config.hidden_size
    collected = -(-report.fit_tokens // 32) * 32
    measured = sum(tokens) / hidden - 2 * collected  # read for the fit, then sent on
    assert report.headroom.loss_static is not None
    assert measured <= 3 * 4096 + 4 * 1024


def test_without_a_fit_experts_are_compared_on_two_batches(mixture, tmp_path, monkeypatch):
    from moeify.warming import warmup as stages

    seen = []

    def difference(layer, tokens):
        seen.append(len(tokens))
        return expert_difference(layer, tokens)

    monkeypatch.setattr(stages, "expert_difference", difference)
    options = {**FAST, "eval_tokens": 256, "fit": "none", "steps": 0}
    warmup(mixture, tmp_path / "warm", dataset=str(corpus(tmp_path)), **options)
    assert seen == [2 * FAST["batch"] * FAST["seq_len"]] * 2


def test_a_switch_to_single_layers_says_that_an_accelerator_is_left_out(mixture, tmp_path, monkeypatch):
    """Memory is short with the dense model beside the mixture only."""
    weights = memory.loaded_bytes(Checkpoint.open(mixture))
    monkeypatch.setattr(session, "device_for", lambda name: torch.device("cuda" if name is None else name))
    monkeypatch.setattr(memory, "available_memory", lambda: 1.3 * weights)
    options = {
        **FAST,
        "eval_tokens": 256,
        "fit_tokens": 256,
        "fit": "none",
        "steps": 0,
        "dataset": str(corpus(tmp_path)),
    }
    said = []
    for name, device in (("accelerator", None), ("processor", "cpu")):
        choice = options | {"device": device, "reference": str(DEMO / "gpt2")}
        said.append([note for note in warmup(mixture, tmp_path / name, **choice).notes if "on the CPU" in note])
    assert said[0][0].startswith("ran layer by layer on the CPU, not on cuda")
    assert not said[1]
    alone = warmup(mixture, tmp_path / "alone", **options)
    assert not any("on the CPU" in note for note in alone.notes)
