"""Upcycling 8 x Qwen2.5-0.5B beside cp, load-modify-save and mergekit-moe: ``make bench``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import Measure, measure, median, spread
from benchmarks.peers import installed_peer, mergekit_command, transformers_command
from benchmarks.random_checkpoint import write_checkpoint

NUM_EXPERTS = 8
QUICK_LAYERS, FULL_LAYERS = 4, 24
EXPERT_BYTES = 3 * 896 * 4864 * 2  # of one expert in one layer
REST_BYTES = 350_000_000
MEMORY_RUNS = ((4, "5GB"), (8, "5GB"), (16, "5GB"), (8, "1GB"))
MEMORY, MEMORY_LAYERS, MEMORY_SHARDS = "/dev/shm", 8, ("5GB", "500MB")
PEER_GIB = 16
MOEIFY = [sys.executable, "-m", "moeify"]

Runs = dict[str, list[Measure]]


class Bench:
    """The folders of one session and what was measured in them."""

    def __init__(self, folder: Path, num_layers: int, runs: int) -> None:
        self.source, self.output = folder / "dense", folder / "moe"
        self.reference, self.copy = folder / "reference", folder / "copy"
        self.folder, self.num_layers, self.runs = folder, num_layers, runs

    def upcycle(self, output: Path, noise: float, num_experts: int = 8, shard: str = "5GB") -> list[str]:
        """The command line of one upcycling."""
        return [
            *MOEIFY,
            "upcycle",
            str(self.source),
            str(output),
            "--experts",
            str(num_experts),
            "--noise",
            str(noise),
            "--max-shard-size",
            shard,
            "--quiet",
        ]

    def timed(self, command: Sequence[str], made: Path | None, cold: Sequence[Path] = ()) -> Measure:
        """One process; what it ``made`` is removed, files under ``cold`` leave the page cache."""
        os.sync()
        for folder in cold:
            drop_cache(folder)
        found = measure(command)
        if made is not None:
            shutil.rmtree(made)
        return found

    def interleaved(self, cold: bool) -> Runs:
        """Every command in every round, in an order that turns from round to round."""
        copy = ["cp", "-r", str(self.reference), str(self.copy)]
        durable = ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', str(self.reference), str(self.copy)]
        work = [
            ("moeify, no noise", self.upcycle(self.output, 0.0), self.output, self.source),
            ("moeify, noise 0.01", self.upcycle(self.output, 0.01), self.output, self.source),
            ("cp -r", copy, self.copy, self.reference),
            ("cp -r, flushed to disk", durable, self.copy, self.reference),
        ]
        found: Runs = {name: [] for name, *_ in work}
        for number in range(self.runs):
            turn = number % len(work)
            for name, command, made, read in work[turn:] + work[:turn]:
                found[name].append(self.timed(command, made, [read] if cold else ()))
                note(f"{name}: {found[name][-1].seconds:.2f} s")
        return found

    def memory(self) -> list[tuple[str, ...]]:
        """Peak memory against the number of experts and the shard size."""
        rows = []
        for num_experts, shard in MEMORY_RUNS:
            peaks = [
                self.timed(self.upcycle(self.output, noise, num_experts, shard), self.output) for noise in (0.0, 0.01)
            ]
            note(f"{num_experts} experts, {shard}: {peaks[0].peak_mib:.0f} MiB")
            rows.append((str(num_experts), shard, *(f"{peak.peak_mib:.1f}" for peak in peaks)))
        return rows

    def in_memory(self) -> list[tuple[str, ...]]:
        """Plain copies on a memory file system by one core and by all: one file, and several."""
        rows = []
        with tempfile.TemporaryDirectory(prefix="moeify-bench-", dir=MEMORY) as folder:
            bench = Bench(Path(folder), MEMORY_LAYERS, self.runs)
            write_checkpoint(bench.source, MEMORY_LAYERS)
            for shard in MEMORY_SHARDS:
                command = bench.upcycle(bench.output, 0.0, shard=shard)
                alone = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
                found = [
                    (bench.timed(alone, bench.output), bench.timed(command, bench.output)) for _ in range(self.runs)
                ]
                times = ([pair[place].seconds for pair in found] for place in (0, 1))
                ratio = spread([every.seconds / one.seconds for one, every in found])
                peak = max(every.peak_mib for _, every in found)
                rows.append((shard, *map(spread, times), ratio, f"{peak:.0f}"))
        return rows

    def light(self) -> list[tuple[str, ...]]:
        """Commands that should answer at once."""
        dry = [*MOEIFY, "upcycle", str(self.source), "--dry-run"]
        rows = []
        for name, command in (("moeify --help", [*MOEIFY, "--help"]), ("--dry-run", dry)):
            found = [self.timed(command, None) for _ in range(self.runs)]
            rows.append((name, spread([f.seconds for f in found]), f"{max(f.peak_mib for f in found):.0f}"))
        return rows

    def peer(self, command: Sequence[str]) -> Measure:
        """One run of a peer."""
        made = self.folder / "peer"
        return self.timed(command, made)


def drop_cache(folder: Path) -> None:
    """Take the files below ``folder`` out of the page cache, as far as the kernel lets us."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def available_gib() -> float:
    """Memory that is free for another process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) / 2**20


def note(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on stdout."""
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def comparison(found: Runs) -> list[tuple[str, ...]]:
    """Seconds, paired ratios to both copies, CPU time and peak memory."""
    plain, durable = ([run.seconds for run in found[name]] for name in ("cp -r", "cp -r, flushed to disk"))
    rows = []
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        ratios = [spread([own / other for own, other in zip(seconds, copy, strict=True)]) for copy in (plain, durable)]
        cpu = spread([run.cpu_seconds for run in runs])
        peak = f"{max(r.peak_mib for r in runs):.0f}" if name.startswith("moeify") else ""
        rows.append((name, spread(seconds), *ratios, cpu, peak))
    return rows


def peers(bench: Bench, options: argparse.Namespace, copy_seconds: float) -> None:
    """Run the peers that were asked for and print them."""
    commands: list[tuple[str, Callable[[], list[str]]]] = []
    made = bench.folder / "peer"
    if options.no_transformers:
        pass
    elif available_gib() < PEER_GIB:
        note(f"load-modify-save needs {PEER_GIB} GiB of memory: left out")
    else:
        commands.append(
            (
                "transformers: load, modify, save_pretrained",
                lambda: transformers_command(bench.source, made, NUM_EXPERTS),
            )
        )
    if options.mergekit:
        tool = installed_peer("mergekit", bench.folder / "mergekit")
        commands.append(("mergekit-moe 0.1.5", lambda: mergekit_command(tool, bench.source, made, 8)))
    rows = []
    for name, command in commands:
        found = bench.peer(command())
        ratio = found.seconds / copy_seconds
        rows.append((name, f"{found.seconds:.1f}", f"{ratio:.1f}", f"{found.peak_mib:.0f}"))
    if rows:
        table("Peers, one run", ("", "seconds", "x cp -r", "peak MiB"), rows)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upcycle", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds of the comparison with cp")
    parser.add_argument("--quick", action="store_true", help="4 layers instead of 24")
    parser.add_argument("--folder", help="where to write; a temporary folder if left out")
    parser.add_argument("--cold", action="store_true", help="also with sources out of the cache")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory table")
    parser.add_argument("--no-transformers", action="store_true", help="leave out that peer")
    parser.add_argument("--mergekit", action="store_true", help="install mergekit-moe and time it")
    return parser.parse_args()


def main() -> None:
    """Measure everything and clean up."""
    options = parse()
    layers = QUICK_LAYERS if options.quick else FULL_LAYERS
    written = layers * NUM_EXPERTS * EXPERT_BYTES + REST_BYTES
    needed = 3 * written + 2_000_000_000
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if free < needed:
        sys.exit(f"this needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    with tempfile.TemporaryDirectory(prefix="moeify-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), layers, options.runs)
        write_checkpoint(bench.source, layers)
        measure(bench.upcycle(bench.reference, 0.0))
        head = ("", "seconds", "x cp -r", "x cp -r, flushed", "CPU seconds", "peak MiB")
        size = sum(p.stat().st_size for p in bench.reference.iterdir()) / 1e9
        warm = bench.interleaved(cold=False)
        title = f"{NUM_EXPERTS} experts, {layers} layers, {size:.2f} GB written, {options.runs} runs"
        table(f"{title}, sources in the page cache", head, comparison(warm))
        if options.cold:
            table(f"{title}, sources read from disk", head, comparison(bench.interleaved(cold=True)))
        if os.path.isdir(MEMORY):
            head = ("shards", "seconds, one core", "every core", "ratio", "peak MiB")
            table("In memory, 2 GB written, no noise", head, bench.in_memory())
        table("Light commands", ("", "seconds", "peak MiB"), bench.light())
        if not options.no_memory:
            head = ("experts", "shards", "peak MiB, no noise", "peak MiB, noise 0.01")
            table("Memory", head, bench.memory())
        peers(bench, options, median([run.seconds for run in warm["cp -r"]]))


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as failure:
        sys.exit(str(failure))
