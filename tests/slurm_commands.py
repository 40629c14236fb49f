"""Stand-ins for Slurm's commands: real programs, small shell scripts in a folder that is all of PATH."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpc.cluster.scheduler import Scheduler


@dataclass(frozen=True)
class SlurmCommands:
    """A folder of scripts; what each was called with is noted, one line a call."""

    folder: Path

    def write(self, name: str, body: str) -> None:
        """Make `name` a shell script; the shell's own words are at hand, others by their path, such as /bin/sleep."""
        script = self.folder / name
        script.write_text(f'#!/bin/sh\necho "$*" >>"{self.folder}/{name}.calls"\n{body}\n')
        script.chmod(0o755)

    def says(self, name: str, text: str) -> None:
        """Make `name` a script that writes `text`."""
        answer = self.folder / f"{name}.answer"
        answer.write_text(text)
        self.write(name, f'exec /bin/cat "{answer}"')

    def calls(self, name: str) -> list[str]:
        """The arguments of every call."""
        noted = self.folder / f"{name}.calls"
        return noted.read_text().splitlines() if noted.exists() else []

    def scheduler(self, deadline_s: float = 10.0, **variables: str) -> Scheduler:
        """A scheduler that finds these commands and no others."""
        return Scheduler(deadline_s, {"PATH": str(self.folder), **variables})
