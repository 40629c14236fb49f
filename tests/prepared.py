"""Real MOFs as prepared MOFs, for tests."""

from functools import lru_cache
from pathlib import Path

from data_prep.records import EntryJob, prepare_entry
from data_prep.settings import PrepSettings
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.screen.library import scan

DATA = Path(__file__).parent / "data"


@lru_cache
def prepared(name: str, conformers: bool = False) -> PreparedMof:
    """One of the MOFs in tests/data, by the beginning of its name."""
    entry = next(e for folder in ("mofs", "prep") for e in scan(DATA / folder).entries if e.name.startswith(name))
    outcome = prepare_entry((EntryJob(entry, {"lcd_ang": 5.0}, False), PrepSettings(conformers=conformers)))
    assert isinstance(outcome, PreparedMof), outcome
    return outcome
