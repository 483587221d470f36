"""Training routers with transformers' Trainer."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from moeify.errors import OutputError
from moeify.families.moe_layout import MoeLayout
from moeify.progress import Stage
from moeify.routing.biases import shift_biases
from moeify.routing.config import Trained
from moeify.routing.examples import Examples
from moeify.routing.loaded import LoadedMixture, Routed, replaced
from moeify.routing.running import device_for
from moeify.routing.trained import keep_tied, wanted
from moeify.warming.activations import bound_activations, room_for_activations
from moeify.warming.balances import BALANCES
from moeify.warming.callbacks import MoveBiases, TellProgress
from moeify.warming.config import WarmupConfig
from moeify.warming.losses import RouterSums, null_loss, router_sums, z_loss
from moeify.warming.objective import Objective
from moeify.warming.reporting import place_logs, reporting_options
from moeify.warming.run import TRAINED_FILE, per_step
from moeify.warming.sharding import fill, is_sharded, name_layers, whole

_BIAS = "bias for choosing of layer "
_CHECKPOINTED = "_checkpoint_wrapped_module."  # what activation checkpointing adds to names


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite at ``step``."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")
        self.step, self.loss = step, loss


def prepare(model: nn.Module, layout: MoeLayout, what: Trained) -> None:
    """Mark what is trained, as float32 masters, and freeze the rest, in float32 without autocast.

    Where only routers are trained, the model stays as it is in use: without dropout, whether in
    modules or inside attention, and without noise on what routers read.
    """
    layers = list(LoadedMixture(model, layout).layers.values())
    names, mixed = wanted(model, layers, what), what == "routers" or _autocasts(model, what)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names or not mixed:
            parameter.data = parameter.data.float()
    keep_tied(layers)
    route_in_float32(model, layout)
    if what == "routers":
        model.eval()
        # The Trainer calls it before every step.
        model.train = lambda mode=True: model  # type: ignore[method-assign]


def _autocasts(model: nn.Module, what: Trained) -> bool:
    """Whether training computes in bfloat16: float16 would lose small gradients."""
    config: Any = model.config
    return what != "routers" and config.dtype == torch.bfloat16


def route_in_float32(model: nn.Module, layout: MoeLayout) -> None:
    """Let routers have and compute with float32 weights, whatever the model does.

    Weights of experts that do not depend on the router get no gradient either: an optimizer would
    turn its rounding into steps.
    """
    config: Any = model.config
    values = config.to_dict()
    learns = layout.rule.learns_from_outputs(values, layout.top_k(values))
    for layer in LoadedMixture(model, layout).layers.values():
        layer.router.float()
        if layer.router in layer.chooser.modules():  # moeify's own compute in float32 anyway
            _compute_in_float32(layer.chooser.float(), learns)


def _compute_in_float32(router: Any, learns: bool) -> None:
    """Let a router that computes in its input's dtype compute in float32.

    It gets float32 weights here, which a half precision input would not multiply.
    """
    if hasattr(router, "_moeify_forward"):
        return
    original = router.forward

    def forward(hidden_states: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(hidden_states.device.type, enabled=False):
            *before, weights, last = original(hidden_states.float(), *more)
        weights = weights if learns else weights.detach()
        return *before, weights.to(hidden_states.dtype), last

    router._moeify_forward = original
    router.forward = forward


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by the names that they had when they were loaded."""
    return {
        name.replace(_CHECKPOINTED, ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class RouterTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is the task's plus balance and z-loss over the global batch.

    ``task`` False leaves the task out, where experts are identical and routing cannot change it.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        examples: Examples,
        config: WarmupConfig,
        run_folder: Path,
        *,
        task: bool = True,
        stage: Stage | None = None,
    ) -> None:
        self.objective, self.config, self.task = objective, config, task
        self.losses: list[dict[str, float]] = []
        self._routed: list[Routed] = []
        self._recording = False
        self._undone = ExitStack()
        self._earlier: tuple[int, tuple[Tensor, Tensor] | None] = (-1, None)
        self._good: dict[str, Tensor] = {}
        self._layers = list(LoadedMixture(model, objective.layout).layers.values())
        super().__init__(
            model=model,
            args=_arguments(config, run_folder, model),
            train_dataset=examples,
            callbacks=[MoveBiases(self)],
        )
        if stage is not None:
            self.add_callback(TellProgress(self, stage, per_step(config, examples.blocks)))
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        place_logs(self.callback_handler.callbacks, run_folder.stem)
        if self.is_fsdp_enabled:
            name_layers(model)
            # Autocast rounds what it may, as in one process; FSDP would round routers as well.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        else:  # accelerate has its own way for shards: --fsdp_activation_checkpointing
            self._undone.enter_context(bound_activations(model, objective.layout, room_for_activations(model)))
            # accelerate puts autocast around it.
            self._undone.enter_context(replaced(model, model.forward))
        self.loss_is_scaled_for_ga = False
        self.model_accepts_loss_kwargs = False
        self._undone.enter_context(LoadedMixture(model, objective.layout).watched(self._record))

    def __enter__(self) -> RouterTrainer:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model without hooks and gradients, and hold no more memory of the training."""
        self._undone.close()
        self._routed.clear()
        self._good.clear()
        self.model.zero_grad()
        del self.optimizer, self.lr_scheduler
        self.accelerator.free_memory()

    def _record(self, routed: Routed) -> None:
        if routed.logits.requires_grad and self._recording:  # not when a layer runs a second time
            self._routed.append(routed)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """A micro-batch; the weights of the last one whose loss was finite are kept."""
        used = {}
        if self.config.train == "routers":  # a second copy of all experts would be too much
            used = {n: p.detach().clone() for n, p in trainable(self.model).items()}
        self._good = self._good or used
        loss: Tensor = super().training_step(*args, **options)
        self._good = used
        return loss

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return any(is_sharded(parameter) for parameter in self.model.parameters())

    @property
    def biases(self) -> dict[int, Tensor]:
        """The biases for choosing by their layers, where they are moved."""
        moved = BALANCES[self.config.balance].shifts_bias
        return {layer.number: layer.bias for layer in self._layers if moved and layer.bias is not None}

    def shift_biases(self) -> None:
        """Move them by what the experts got in this step, of all micro-batches and processes."""
        if self.biases and self._earlier[1] is not None:
            shift_biases(self._layers, self._earlier[1][0], self.config.bias_rate)

    def trained(self) -> dict[str, Tensor]:
        """What was trained, whole and on the CPU; every process has to ask for it."""
        return {name: whole(parameter) for name, parameter in trainable(self.model).items()}

    def last_good(self) -> dict[str, Tensor]:
        """``trained`` before the update that made the loss infinite, where routers are trained."""
        return {name: whole(weight) for name, weight in self._good.items()}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """Task loss per label plus router losses, counted over all processes."""
        self._routed.clear()
        self._recording = True
        with self.accelerator.autocast():
            goal = self.objective.goal(model, self.model, inputs)
            losses, labelled = self.objective.losses(model, self.model, inputs, goal)
        self._recording = False
        total, labels = losses.sum(), labelled.sum()
        sums = self._global(router_sums(self._routed, inputs["attention_mask"]))
        everywhere = _reduced(torch.stack([total.detach().float(), labels.float()]))
        task = (everywhere[0] + total - total.detach()) / everywhere[1].clamp(min=1)
        balance, z = BALANCES[self.config.balance].formula(sums), z_loss(sums)
        loss = self.config.balance_coef * balance + self.config.z_coef * z
        if self.config.null_rate is not None:
            top_k = self._layers[0].top_k
            loss = loss + self.config.null_coef * null_loss(sums, top_k, self.config.null_rate)
        if self.task:
            loss = loss + task
        self._note(loss, task, balance, z)
        # Gradients are averaged over processes, while this loss is already a sum over them.
        scale = dist.get_world_size() if _distributed() else 1
        return loss.detach() + scale * (loss - loss.detach())

    def _global(self, local: RouterSums) -> RouterSums:
        """Sums over all processes; the load counts earlier micro-batches of this step too."""
        packed = local.packed()
        everywhere = _reduced(packed.detach())
        sums = RouterSums.unpacked(everywhere + packed - packed.detach(), *local.counts.shape)
        step, earlier = self._earlier
        sums = sums.with_earlier(earlier if step == self.state.global_step else None)
        self._earlier = (self.state.global_step, (sums.counts.detach(), sums.counted))
        return sums

    def _note(self, loss: Tensor, task: Tensor, balance: Tensor, z: Tensor) -> None:
        values = {"loss": loss, "task": task, "balance": balance, "z": z}
        noted = {name: float(value.detach()) for name, value in values.items()}
        step = self.state.global_step + 1
        if not all(math.isfinite(value) for value in noted.values()):
            raise NonFiniteLossError(step, noted["loss"])
        self.losses.append({"step": step, **noted})

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Also what the loss is made of, where the warm-up is logged elsewhere."""
        parts = {name: self.losses[-1][name] for name in ("task", "balance", "z")} if "loss" in logs else {}
        super().log(logs | parts, *args, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint of the run; whatever fails here, the libraries' own errors too."""
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise OutputError(
                f"writing a checkpoint of the run into {self.args.output_dir} failed: {reason}",
                "free some space; what was saved before can be continued with --resume",
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained and nothing else, whole, whatever holds it."""
        weights, folder = self.trained(), Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            biases = {f"{_BIAS}{layer}": bias.detach().cpu() for layer, bias in self.biases.items()}
            save_file(weights | biases, folder / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The Trainer's own, without the frozen weights that it adds where they are sharded."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint, TRAINED_FILE))
        for name, parameter in trainable(self.model).items():
            fill(parameter, weights[name])
        for layer in self._layers if self.biases else ():
            layer.set_bias(weights[f"{_BIAS}{layer.number}"])


def _arguments(config: WarmupConfig, run_folder: Path, model: nn.Module) -> Any:
    return TrainingArguments(
        output_dir=str(run_folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, config.steps // 10),
        weight_decay=0.0,
        bf16=_autocasts(model, config.train),
        use_cpu=device_for(config.device).type == "cpu",
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        **reporting_options(config, run_folder.stem),
    )


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reduced(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    values = values.clone()
    if _distributed():
        dist.all_reduce(values)
    return values
