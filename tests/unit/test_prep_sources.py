import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from data_prep import sources
from promof_hpc.errors import UsageError
from promof_hpc.screen.library import Library

MOFS = Path(__file__).parents[1] / "data" / "mofs"


@pytest.fixture
def without_unpacking(monkeypatch):
    """The archive need not be unpacked to know what its table says."""
    monkeypatch.setattr(sources, "scan", lambda name: Library(name, ()))


@pytest.mark.parametrize(("name", "column"), [("2019-ASR", "DISORDER"), ("2019-FSR", "State")])
def test_properties_and_disorder_are_those_of_core_mofs_table(name, column, without_unpacking):
    spec = importlib.util.find_spec("CoRE_MOF")
    table = pd.read_csv(Path(spec.origin).parent / "data" / f"{name}.csv", low_memory=False).set_index("filename")
    source = sources.open_source(f"coremof:{name}")
    assert source.disordered == set(table.index[table[column] == "DISORDER"])
    for mof in table.sample(20, random_state=1).index:
        assert source.properties[mof]["lcd_ang"] == pytest.approx(table.LCD[mof])
        assert source.properties[mof]["pld_ang"] == pytest.approx(table.PLD[mof])
        assert source.properties[mof]["asa_m2_per_g"] == pytest.approx(table.ASA_m2_g[mof])


def test_a_missing_value_is_left_out():
    assert sources._measured({"LCD": "5.5", "PLD": "", "LFPD": "n/a", "AV_VF": "nan"}) == {"lcd_ang": 5.5}


def test_a_folder_has_entries_and_no_properties():
    source = sources.open_source(str(MOFS))
    assert [e.name for e in source.entries] == sorted(p.stem for p in MOFS.glob("*.cif"))
    assert source.properties == {}
    assert not source.disordered


def test_no_such_source_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        sources.open_source(str(tmp_path / "nothing"))
