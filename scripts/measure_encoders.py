"""Do mixtures search log lines better? ``python scripts/measure_encoders.py WORK [--pairs 640] [--seeds 5]``

MiniLM, and mixtures made of it, are tuned on pairs of log lines of eight systems by in-batch InfoNCE, for equal steps.
A line is to find the one of its own template, in another session and the words of another version, among lines of all
templates in both: templates that nothing was tuned on, of those eight systems and of eight others. Each arm takes the
best of three learning rates, chosen in a run of another seed on templates of their own. As in measure_decoders.py
runs are not repeated, and several processes may share the work. ``--table`` prints what there is as Markdown.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from evidence_models import checkpoints
from evidence_runs import Study, arguments
from evidence_tables import encoders, read
from log_lines import TRAINED, UNSEEN, batches, searches
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import PrinterCallback, set_seed

import moeify

ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "4 copies, top-1": {"num_experts": 4, "top_k": 1},
    "4 slices of 4": {"num_experts": 4, "top_k": 1, "slices": 4},
    "4 copies by sequence": {"num_experts": 4, "top_k": 1, "route_by": "sequence"},
}
RATES = (1e-4, 3e-4, 1e-3)
BATCH = 16
SEARCHED = {
    "tune": {"other systems": (UNSEEN, "train")},
    "test": {"tuned systems": (TRAINED, "test"), "unseen systems": (UNSEEN, "test")},
}
"""Systems whose lines are searched, and which of their templates, by the part that a run is measured on."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One contrastive tuning: of what, how, on how many pairs of lines, and on which templates it is measured."""

    base: str = "minilm"
    arm: str = ""
    learning_rate: float = 0.0
    seed: int = 0
    pairs: int
    part: str = "test"


class BalancedRanking(MultipleNegativesRankingLoss):
    """In-batch InfoNCE, and the balance loss that a mixture gives beside its states."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__(model)
        self.mixture, self.balance = model[0].auto_model, []
        if hasattr(self.mixture.config, "router_aux_loss_coef"):
            self.mixture.register_forward_hook(lambda _, inputs, outputs: self.balance.append(outputs.aux_loss))

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        """The mean over pairs, and the coefficient of the config times the mean balance of both sides."""
        self.balance.clear()
        loss = super().forward(*inputs, **options)
        if not self.balance:
            return loss
        return loss + self.mixture.config.router_aux_loss_coef * sum(self.balance) / len(self.balance)


def tuned(run: Tuning, count: int) -> dict[str, Any]:
    """Tune an arm, and search with it after that, ``count`` times in each set of systems; for results also before."""
    set_seed(run.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoints.minilm()
        if ARMS[run.arm]:
            folder = Path(scratch, "moe")
            moeify.upcycle(checkpoints.minilm(), folder, seed=run.seed, **ARMS[run.arm])
        model = SentenceTransformer(str(folder), device="cpu")
        model.model_card_data.generate_widget_examples = False
        points = [] if run.part == "tune" else [{"pairs": 0, **searched(model, run.part, count)}]
        _train(model, run, Path(scratch, "run"))
        points.append({"pairs": run.pairs, **searched(model, run.part, count)})
        return {"points": points, "parameters": model[0].auto_model.num_parameters()}


def searched(model: SentenceTransformer, part: str, count: int) -> dict[str, dict[str, float]]:
    """Share of lines whose nearest one is of their template, and mean reciprocal rank of the first that is."""
    return {name: _figures(model, searches(*what, count)) for name, what in SEARCHED[part].items()}


def _figures(model: SentenceTransformer, lines: Iterator[tuple[list[str], list[str]]]) -> dict[str, float]:
    ranks = []
    for first, second in lines:
        queries, others = (
            model.encode(side, convert_to_tensor=True, normalize_embeddings=True) for side in (first, second)
        )
        near = (queries @ queries.T).fill_diagonal_(-1)
        across = queries @ others.T
        own = across.diagonal()[:, None]
        ranks.append((near > own).sum(1) + (across > own).sum(1) + 1)
    rank = torch.cat(ranks).double()
    return {"nearest": (rank == 1).double().mean().item(), "mrr": (1 / rank).mean().item()}


def _train(model: SentenceTransformer, run: Tuning, folder: Path) -> None:
    mixture = model[0].auto_model
    if hasattr(mixture.config, "router_aux_loss_coef"):
        mixture.config.output_router_logits = True
    steps = run.pairs // BATCH
    rows = [pair for batch in batches(steps, BATCH, run.seed) for pair in batch]
    first, second = zip(*rows, strict=True)
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=run.learning_rate,
        warmup_steps=max(1, steps // 10),
        weight_decay=0.01,
        seed=run.seed,
        batch_sampler=_in_order,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    data = Dataset.from_dict({"first": first, "second": second})
    trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=BalancedRanking(model))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()


def _in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
    """Batches as they were made: no two pairs of one hold the same template."""
    return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)


def missed_rank(found: dict[str, Any]) -> float:
    """What the learning rate is chosen by: what the mean reciprocal rank in the first set lacks of 1."""
    return 1 - next(figures["mrr"] for name, figures in found["points"][-1].items() if name != "pairs")


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = arguments("Compare dense and mixture encoders in search.", "encoders.json", list(ARMS), seeds=5)
    parser.add_argument("--pairs", type=int, default=640, help="pairs of lines that each run is tuned on")
    parser.add_argument(
        "--searches", type=int, default=2, help="pairs of sessions that are searched, of 160 lines each"
    )
    options = parser.parse_args()
    if options.table:
        print("\n".join(encoders(read(options.results))))
        return
    Study(
        options,
        full=Tuning(pairs=options.pairs),
        short=Tuning(pairs=options.pairs, part="tune", seed=100),
        arms=options.arm or list(ARMS),
        rates=RATES,
        make=lambda run: tuned(run, options.searches),
        score=missed_rank,
    ).share()


if __name__ == "__main__":
    main()
