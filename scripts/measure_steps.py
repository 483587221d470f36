"""Processor time and memory of a training step, routers alone beside all weights.

    python scripts/measure_steps.py [--layers 4] [--steps 4]

SmolLM2-135M as Qwen2, its first layers, four experts, through the same Trainer; each way runs in a
process of its own. Processor time is of steps after the first; memory is the process's peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def measure(folder: Path, what: str, steps: int) -> dict[str, float]:
    """Train for a few steps in this process."""
    import numpy as np
    import torch
    from transformers.trainer_callback import TrainerCallback

    from moeify.families.registry import moe_layout
    from moeify.routing.data import Blocks
    from moeify.routing.examples import Examples
    from moeify.routing.loading import load_model
    from moeify.warming.config import WarmupConfig
    from moeify.warming.objective import Objective
    from moeify.warming.train import RouterTrainer, prepare

    torch.set_num_threads(1)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.process_time())

    model = load_model(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layout = moe_layout(model.config.to_dict())
    config = WarmupConfig(dataset="-", steps=steps, train=what, batch=4, device="cpu")
    prepare(model, layout, config.train)
    ids = np.random.default_rng(0).integers(0, 30_000, (64, 128)).astype(np.int32)
    blocks = Blocks(input_ids=ids, lengths=np.full(64, 128), domains=None, domain_names=(), documents=64)
    examples = Examples(blocks, "causal", None, 0)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RouterTrainer(model, Objective(loss="causal", layout=layout), examples, config, Path(scratch))
        trainer.add_callback(Clock())
        trainer._save_checkpoint = lambda *_, **__: None
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    return {"seconds": seconds, "peak_mb": peak / 1024, "model_mb": before / 1024}


def main() -> None:
    """Compare both ways."""
    parser = argparse.ArgumentParser(description="Measure what a training step costs.")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs=2, metavar=("FOLDER", "WHAT"))
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(Path(options.only[0]), options.only[1], options.steps)))
        return
    from real import checkpoints

    import moeify

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "moe")
        moeify.upcycle(checkpoints.smollm2(options.layers), folder, num_experts=4)
        found = {}
        for what in ("routers", "all"):
            command = [sys.executable, __file__, "--only", str(folder), what, "--steps"]
            run = subprocess.run([*command, str(options.steps)], stdout=subprocess.PIPE, check=True)
            found[what] = json.loads(run.stdout)
            print(what, found[what], flush=True)
    print(f"router step / full step: {found['routers']['seconds'] / found['all']['seconds']:.2f}")


if __name__ == "__main__":
    main()
