"""Every rule by which routers choose: losses of what the model used, gradients, a whole warm-up."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedMixture, Routed
from moeify.routing.loading import load_model
from moeify.warming.balances import BALANCES
from moeify.warming.losses import router_sums, z_loss
from moeify.warming.train import prepare
from moeify.warming.warmup import warmup
from tests.families.published_models import BY_CLASS, tiny
from tests.warming.mixtures import FAST, changed, corpus, with_tokenizer

IDS = torch.arange(4, 52).reshape(3, 16)
MASK = torch.ones_like(IDS)
MASK[2, 9:] = 0


def spread(model_type: str, **options: object) -> torch.nn.Module:
    """A model whose experts and routers differ enough for what routing does to be seen."""
    model = tiny(model_type, tied=False, **options)
    torch.manual_seed(1)
    layout = moe_layout(model.config.to_dict())
    with torch.no_grad():
        for layer in LoadedMixture(model, layout).layers.values():
            for module in (layer.router, layer.experts):
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
    prepare(model, layout, "routers")
    return model


class Watched:
    """A model's losses by what its layers did, as the Trainer takes them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.mixture = LoadedMixture(model, moe_layout(model.config.to_dict()))

    def run(self) -> tuple[torch.Tensor, list[Routed]]:
        seen: list[Routed] = []
        with self.mixture.watched(seen.append):
            logits = self.model(input_ids=IDS, attention_mask=MASK).logits
        return logits[MASK.bool()], seen

    def loss(self, kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """And which experts every layer chose."""
        logits, seen = self.run()
        chosen, sums = [one.experts.sort(-1)[0] for one in seen], router_sums(seen, MASK)
        if kind == "task":
            return torch.nn.functional.cross_entropy(logits, IDS[MASK.bool()]), chosen
        return (z_loss(sums) if kind == "z" else BALANCES[kind].formula(sums)), chosen


@pytest.mark.parametrize("model_type", BY_CLASS)
def test_sums_are_what_the_model_used(model_type):
    watched = Watched(spread(model_type))
    _, seen = watched.run()
    sums = router_sums(seen, MASK)
    real = MASK.flatten().bool()
    assert len(seen) == len(watched.mixture.layers) and sums.tokens == real.sum()
    for place, one in enumerate(seen):
        logits, rule = one.logits[real], one.layer.rule
        raw = logits.sigmoid() if rule.scores == "sigmoid" else logits.softmax(-1)
        wanted = (raw / raw.sum(-1, keepdim=True)).sum(0)
        torch.testing.assert_close(sums.probabilities[place], wanted, rtol=1e-4, atol=1e-5)
        used = torch.zeros_like(logits).scatter(1, one.experts[real], one.weights[real].float())
        torch.testing.assert_close(sums.gates[place], used.sum(0))
        assert torch.equal(sums.counts[place], (used != 0).float().sum(0))
        if rule.renormalises(watched.model.config.to_dict()) and not rule.weighs_inputs:
            each = rule.scaling(watched.model.config.to_dict())
            torch.testing.assert_close(used.sum(-1), torch.full((len(used),), each), rtol=1e-4, atol=0)


def moved(trained: list, slopes: list, step: float) -> None:
    with torch.no_grad():
        for parameter, slope in zip(trained, slopes, strict=True):
            parameter.add_(slope * step)


@pytest.mark.parametrize("model_type", BY_CLASS)
def test_gradients_are_the_slopes_of_the_losses(model_type):
    """By finite differences along the gradient of all routers' weights and biases.

    Steps get shorter until no token changes its experts, where losses jump.
    """
    watched = Watched(spread(model_type))
    trained = [p for p in watched.model.parameters() if p.requires_grad]
    for kind in ("task", "z", "switch", "cv2", "kl"):
        slopes = torch.autograd.grad(watched.loss(kind)[0], trained, allow_unused=True)
        assert all(slope is not None for slope in slopes), kind
        length = float(torch.sqrt(sum(slope.double().square().sum() for slope in slopes)))
        assert length > 1e-5, kind
        for distance in (4e-3, 1e-3, 2.5e-4):
            step = distance / length
            moved(trained, slopes, step)
            high, ups = watched.loss(kind)
            moved(trained, slopes, -2 * step)
            low, downs = watched.loss(kind)
            moved(trained, slopes, step)
            if all(map(torch.equal, ups, downs)):
                break
        found, rounding = float(high - low) / (2 * step), 4e-7 * float(high) / step
        assert found == pytest.approx(length**2, rel=0.05, abs=rounding), kind


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 60)


SHORT = {**FAST, "seq_len": 16, "fit_tokens": 512, "eval_tokens": 256}


@pytest.mark.parametrize(
    "model_type", ["granitemoe", "deepseek_v3", "ernie4_5_moe", "gpt_oss", "llama4_text", "jamba"]
)
def test_training_evens_out_a_skewed_router(model_type, data, tmp_path):
    """Every token sees a bias towards one expert of each layer; balance takes it away."""
    model = tiny(model_type, tied=False, vocab_size=2048)
    folder = tmp_path / "moe"
    layers = LoadedMixture(model, moe_layout(model.config.to_dict())).layers.values()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)
        for layer in layers:
            layer.router.weight[1] += 0.05
    model.to(torch.bfloat16).save_pretrained(folder)
    report = warmup(
        with_tokenizer(folder),
        tmp_path / "warm",
        dataset=str(data),
        fit="none",
        steps=15,
        learning_rate=0.01,
        balance_coef=1.0,
        z_coef=0.0,
        **SHORT,
    )
    assert report.curve[-1]["balance"] < report.curve[0]["balance"]
    assert report.max_violation_after < report.max_violation_before
    names = changed(folder, tmp_path / "warm")
    assert names and all(".router." in name or ".gate." in name or "router" in name for name in names)
    assert any(name.endswith("router.bias") for name in names) == (model_type == "gpt_oss")


@pytest.mark.parametrize("model_type", ["deepseek_v3", "ernie4_5_moe", "lfm2_moe", "gpt_oss"])
def test_a_fit_takes_back_biases_of_the_router_before(model_type, data, tmp_path):
    folder, ends = tmp_path / "moe", ("correction_bias", "expert_bias", "router.bias")
    tiny(model_type, tied=False, vocab_size=2048).save_pretrained(folder)
    tensors = load_file(with_tokenizer(folder) / "model.safetensors")
    biases = {name for name in tensors if name.endswith(ends)}
    for name in biases:
        tensors[name] = tensors[name] + torch.linspace(-1, 1, tensors[name].numel())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    options = {"dataset": str(data), "steps": 0, **SHORT}
    kept = warmup(folder, tmp_path / "kept", fit="none", **options)
    assert not changed(folder, tmp_path / "kept")
    report = warmup(folder, tmp_path / "warm", fit="kmeans", **options)
    assert biases and biases < changed(folder, tmp_path / "warm")
    model = load_model(tmp_path / "warm")
    loaded = LoadedMixture(model, moe_layout(model.config.to_dict()))
    for layer in loaded.layers.values():
        biases = (getattr(layer.router, "bias", None), layer.bias)
        assert not any(bias.any() for bias in biases if bias is not None)
    assert report.max_violation_after < 0.5 * kept.max_violation_after
