import json
from pathlib import Path

import pytest
import torch

from promof_hpc.chem.sequence import build_vocabulary
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.policy.chemist import Chemist, ChemistSettings
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.weights import load_chemist, load_engineer, load_policies, save_chemist, save_engineer

VOCABULARY = build_vocabulary(["<BOS> [Zn] <SEP> c1cnccn1 <EOS>"])
CONDITIONS = Conditions.of([{"pld_ang": 3.0 + k, "atoms": 30.0 + k} for k in range(30)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    chemist = Chemist(ChemistSettings(len(VOCABULARY), len(CONDITIONS), width=16, depth=1, heads=1))
    save_chemist(tmp_path, chemist, VOCABULARY, CONDITIONS)
    save_engineer(tmp_path, Engineer(EngineerSettings(width=16, layers=1, heads=2, gaussians=4)))
    return tmp_path


def test_policies_come_back_with_their_meaning(folder):
    first, second = load_policies(folder), load_policies(folder)
    assert first.chemist.vocabulary == VOCABULARY
    assert first.chemist.conditions == CONDITIONS
    assert first.chemist.sha256 == second.chemist.sha256
    tokens, wanted = torch.tensor([VOCABULARY.encode("<BOS> [Zn] <SEP>")]), CONDITIONS.encode([{"atoms": 40}])
    assert torch.equal(first.chemist.network(tokens, wanted), second.chemist.network(tokens, wanted))
    assert first.engineer.network.settings == EngineerSettings(width=16, layers=1, heads=2, gaussians=4)


def test_saving_again_replaces_and_changes_the_digest(folder):
    before = load_engineer(folder)
    with torch.no_grad():
        next(before.network.parameters()).add_(1.0)
    assert save_engineer(folder, before.network) != before.sha256
    after = load_engineer(folder)
    for a, b in zip(before.network.state_dict().values(), after.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_missing_policy_names_the_command_that_makes_it(folder):
    (folder / "engineer.safetensors").unlink()
    with pytest.raises(UsageError, match="promof pretrain engineer"):
        load_policies(folder)
    with pytest.raises(UsageError, match="promof pretrain chemist"):
        load_chemist(folder / "nowhere")


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "changed": content[:-4] + b"oops", "empty": b""}[how])


@pytest.mark.parametrize("name", ["chemist.safetensors", "chemist.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_files_are_told_and_never_used(folder, name, how):
    spoil(folder / name, how)
    with pytest.raises(PromofError, match="promof pretrain chemist"):
        load_chemist(folder)


@pytest.mark.parametrize(
    "change",
    [{"width": 32}, {"wings": 2}, {"depth": "deep"}],
    ids=["other size", "unknown key", "wrong type"],
)
def test_settings_that_do_not_fit_the_weights_are_told(folder, change):
    text = json.loads((folder / "chemist.json").read_text())
    text["settings"] |= change
    (folder / "chemist.json").write_text(json.dumps(text))
    with pytest.raises(PromofError, match="cannot be read"):
        load_chemist(folder)
