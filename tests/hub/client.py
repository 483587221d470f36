"""Running moeify and other programs against the stand-in, as a user's shell would."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .stand_in import TOKEN, HubStandIn

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Client:
    """Programs in processes of their own, which know the stand-in as the Hub.

    ``python`` runs them; one that is not this one does not find moeify. ``printed`` collects
    everything that they wrote.
    """

    hub: HubStandIn
    home: Path
    token: str | None = TOKEN
    offline: bool = False
    xet: bool = False
    python: Path = Path(sys.executable)
    printed: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name == "HF_DEBUG" or not name.startswith(("HF_", "HUGGING"))
        }
        extra = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HOME": str(self.home),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
        }
        kept.pop("PYTHONPATH", None)
        if self.python == Path(sys.executable):
            extra["PYTHONPATH"] = str(REPOSITORY)
        if self.token is not None:
            extra["HF_TOKEN"] = self.token
        if self.offline:
            extra["HF_HUB_OFFLINE"] = "1"
        return kept | extra

    def run(self, *command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        self.home.mkdir(exist_ok=True)
        done = subprocess.run(
            [*map(str, (self.python, *command))],
            env=self.environment,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.printed += [done.stdout, done.stderr]
        return done

    def interrupted(self, *arguments: object, at: tuple[str, str]) -> str:
        """What moeify prints on stderr when Ctrl-C comes with a request of this kind."""
        running = subprocess.Popen(
            [*map(str, (self.python, "-m", "moeify", *arguments))],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.hub.meanwhile(*at, lambda: running.send_signal(signal.SIGINT))
        printed = running.communicate(timeout=120)
        self.printed += printed
        assert running.returncode == 130, printed[1]
        return printed[1]

    def moeify(self, *arguments: object, cwd: Path | None = None) -> str:
        """What a command prints on stdout; it must succeed."""
        done = self.run("-m", "moeify", *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: object) -> str:
        """What a command that must fail with a clear message prints on stderr."""
        done = self.run("-m", "moeify", *arguments)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "bug in moeify" not in done.stderr, done.stderr
        assert "hint:" in done.stderr
        return done.stderr
