import shutil
from pathlib import Path

import pytest

from promof_hpc.config import DesignConfig
from promof_hpc.design.strategies.external import External
from promof_hpc.design.strategy import Round
from promof_hpc.errors import UsageError
from promof_hpc.screen.library import scan

MOFS = Path(__file__).parents[1] / "data" / "mofs"
BROKEN = "data_broken\n_cell_length_a 5\n"


def config(folder: Path, **rounds: int) -> DesignConfig:
    return DesignConfig(strategy="external", external=str(folder), rounds=rounds, assembly={"atom_cap": 500})


def asked(number: int, targets: int = 1) -> Round:
    return Round(number, 0, 100, 0, [{"pld_ang": 6.0}] * targets)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound MOFs, a file that is no crystal, and a lattice of argon, in that order of names."""
    names = sorted(p.name for p in MOFS.glob("*.cif"))
    chosen = [n for n in names if n.startswith(("EDUSIF", "OFERUN"))]
    for k, name in enumerate(chosen):
        shutil.copy(MOFS / name, tmp_path / f"a{k}-{name}")
    (tmp_path / "b-broken.cif").write_text(BROKEN)
    argon = "data_ar\n_cell_length_a 5.3\n_cell_length_b 5.3\n_cell_length_c 5.3\n_cell_angle_alpha 90\n"
    argon += "_cell_angle_beta 90\n_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n"
    argon += "_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    (tmp_path / "c-argon.cif").write_text(argon + "Ar1 Ar 0 0 0\nAr2 Ar 0.5 0.5 0\n")
    return tmp_path


def test_every_entry_is_proposed_once_in_the_order_of_names(folder: Path):
    strategy = External(config(folder, targets=1, sets=1, assemblies=3))
    rounds = [strategy.propose(asked(n)).items for n in range(3)]
    assert [len(items) for items in rounds] == [3, 1, 0]  # an empty round ends a campaign
    assert [p.name for items in rounds for p in items] == [e.name for e in scan(folder).entries]


def test_sound_crystals_pass_the_gate_with_their_component_set_and_others_say_why(folder: Path):
    items = External(config(folder, targets=1, sets=2, assemblies=2)).propose(asked(0)).items
    sound, broken, argon = items[:2], items[2], items[3]
    assert all(p.refusal == "" and p.gate_score == 1.0 and "<SEP>" in p.sequence for p in sound)
    assert broken.structure is None
    assert broken.refusal
    assert broken.gate_score == 0.0
    assert argon.refusal == "undecomposed"


def test_what_is_evaluated_is_what_a_screening_of_the_folder_would_evaluate(folder: Path):
    items = External(config(folder, targets=1, sets=2, assemblies=1)).propose(asked(0)).items
    for proposal, entry in zip(items, scan(folder).entries[:2], strict=True):
        assert proposal.structure.digest() == entry.read().digest()


def test_entries_are_dealt_to_the_targets_of_a_round_in_equal_shares(folder: Path):
    items = External(config(folder, targets=2, sets=2, assemblies=1)).propose(asked(0, targets=2)).items
    assert [p.target for p in items] == [0, 0, 1, 1]
    assert len({p.group for p in items}) == 4


def test_a_folder_that_changed_is_noticed_when_a_run_goes_on(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    state = tmp_path_factory.mktemp("state")
    External(config(folder)).save(state)()
    External(config(folder)).load(state)
    (folder / "d-late.cif").write_text(BROKEN)
    with pytest.raises(UsageError, match=r"has changed since the run began .*d-late"):
        External(config(folder)).load(state)
