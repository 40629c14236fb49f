"""What the ranks of a farm and the job that started them by the site's MPI launcher tell each other: files in a folder.

Between the two stands a program that passes on neither signals nor more than an exit code.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hpc.preemption import Asked, Parting
from promof_hpc.store.shard import list_names, publish_text

VARIABLE = "PROMOF_RELAY"  # names the folder


class Word(StrEnum):
    """What is told."""

    BEGUN = "begun"  # by a rank, before it looks for the others
    MISSED = "missed"  # by a rank: the others did not come
    LEFT = "left"  # by the ranks, how
    DRAIN = "drain"  # by the job: stop


@dataclass(frozen=True)
class Relay:
    """Words in `folder`, each told once."""

    folder: Path

    @classmethod
    def here(cls) -> Relay | None:
        """That of this rank; None where no launcher stands between it and its job."""
        folder = os.environ.get(VARIABLE)
        return None if folder is None else cls(Path(folder))

    def tell(self, word: Word, text: str = "") -> None:
        """Say it."""
        publish_text(self.folder / word, text)

    def told(self, word: Word) -> bool:
        """Whether it was said."""
        return word in list_names(self.folder)

    def tell_parting(self, parting: Parting) -> None:
        """Say how the ranks left."""
        self.tell(Word.LEFT, json.dumps({"asked": parting.asked.name, "why": parting.why}))

    def parting(self) -> Parting:
        """How the ranks left; as if nothing had been asked where they could not say it."""
        if not self.told(Word.LEFT):
            return Parting()
        said = json.loads((self.folder / Word.LEFT).read_text(encoding="utf-8"))
        return Parting(Asked[said["asked"]], said["why"])
