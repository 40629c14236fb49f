"""What happened when: one JSON-lines file a writer, for progress, utilisation and post-mortems."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names

Event = Mapping[str, Any]


class EventLog:
    """Appends the events of one writer, a line each, flushed at once."""

    def __init__(self, run: RunDir, writer: str):
        self._path: Path = run.events / f"{writer}.jsonl"

    def write(self, event: str, **content: Any) -> None:
        """Append one event with the time of day in seconds. A full disk loses the event, never the run."""
        line = json.dumps({"event": event, "time_s": round(time.time(), 3), **content})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            return


def read_events(run: RunDir) -> Iterator[Event]:
    """Every readable event of every writer; a torn last line is passed over."""
    for name in list_names(run.events, ".jsonl"):
        for line in (run.events / name).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield {"writer": name.removesuffix(".jsonl"), **json.loads(line)}
            except ValueError:
                continue
