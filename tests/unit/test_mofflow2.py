import pickle

import pytest
import torch

from promof_hpc.assembly.components import crystal_components
from promof_hpc.assembly.stack import stack
from promof_hpc.errors import UsageError
from promof_hpc.policy import flow
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.mofflow2 import RELEASED, engineer_of, load_released, released_shapes
from tests.prepared import prepared

TINY = EngineerSettings(**{**vars(RELEASED), "width": 16, "layers": 2, "heads": 2, "gaussians": 8})


def _weights(settings: EngineerSettings = TINY) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(s, generator=generator) * 0.1 for n, s in released_shapes(settings).items()}
    for name in state:
        if name.endswith(".offset"):
            reach = 20.0 if name.startswith("final_pool") else 5.0 if name.startswith("torsion") else 50.0
            state[name] = torch.linspace(0, reach, settings.gaussians)
    return {f"model.{name}": value for name, value in state.items()}


def test_the_released_size_has_the_parameters_that_were_counted_in_the_original():
    buffers = sum(128 for name in released_shapes() if name.endswith(".offset"))
    count = sum(torch.Size(shape).numel() for shape in released_shapes().values()) - buffers
    assert count == 146_115_860
    with torch.device("meta"):
        engineer = Engineer(RELEASED)
    assert {n: tuple(v.shape) for n, v in engineer.state_dict().items()} == released_shapes()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("initial_embed.linear_out.weight", (1024, 175)),
        ("interaction_layers.9.interaction_layer.self_attn.linear_k.weight", (1024, 1156)),
        ("interaction_layers.0.interaction_layer.ffn.2.weight", (1024, 4096)),
        ("final_pool.linear_v.weight", (1024, 1152)),
        ("torsion_output.dihedral_proj.weight", (1024, 4096)),
        ("rotation_output.rot_output.2.weight", (9, 1024)),
    ],
)
def test_names_and_shapes_are_those_of_the_release(name, shape):
    assert released_shapes()[name] == shape


def test_own_options_add_modules_and_change_no_released_one():
    own = {n: tuple(v.shape) for n, v in Engineer(EngineerSettings()).state_dict().items()}
    released = released_shapes(EngineerSettings())
    assert {n: own[n] for n in released} == released
    extra = {n.split(".")[0] if "direction_" not in n else n.split(".")[-2] for n in own.keys() - released.keys()}
    embeddings = {"role_embed", "pose_embed", "angle_embed"}
    assert extra == {"contact_head", "vector_output", "direction_k", "direction_v"} | embeddings


def test_a_checkpoint_is_read_and_predicts(tmp_path):
    torch.save({"state_dict": _weights(), "epoch": 3}, tmp_path / "ckpt.pt")
    engineer = load_released(tmp_path / "ckpt.pt", TINY)
    for name, value in engineer.state_dict().items():
        assert torch.equal(value, _weights()[f"model.{name}"])
    fixed = stack([crystal_components(prepared("FIPWUY"))[0]])
    state = flow.prior(fixed, torch.Generator().manual_seed(0))
    clean = engineer(engineer.prepare(fixed), state, torch.tensor([0.2]))
    assert all(torch.isfinite(x).all() for x in (clean.lattice, clean.turns, clean.centroids, clean.torsions))
    assert (clean.lattice > 0).all()  # softplus


def _changed(**values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = _weights()
    for name, value in values.items():
        full = f"model.{name}"
        state = {n: v for n, v in state.items() if n != full} | ({full: value} if value is not None else {})
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (_changed(**{"final_pool.linear_q.bias": None}), "missing: final_pool.linear_q.bias"),
        (_changed(**{"odd.weight": torch.zeros(1)}), "unknown: odd.weight"),
        (_changed(**{"final_pool.linear_q.bias": torch.zeros(3)}), r"final_pool.linear_q.bias \(3,\) not \(16,\)"),
        (_changed(**{"final_pool.edge_dist_embedder.offset": torch.zeros(8)}), "no grid from 0 to 20"),
        (_weights(EngineerSettings(**{**vars(TINY), "layers": 3})), r"unknown: interaction_layers.2.* and \d+ more"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(state, said):
    with pytest.raises(UsageError, match=said):
        engineer_of(state, TINY)


class _Code:
    def __reduce__(self):
        return (print, ("a pickle that runs code",))


def test_files_that_are_no_checkpoint_of_tensors_are_refused(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(_Code()))
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (("text.pt", "cannot be read"), ("code.pt", "cannot be read"), ("list.pt", "no state_dict"),
                       ("absent.pt", "cannot be read")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            load_released(tmp_path / name, TINY)
    assert "runs code" not in capsys.readouterr().out
