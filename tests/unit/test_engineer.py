import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rdkit import Chem
from scipy.spatial.transform import Rotation
from torch.nn import functional

from promof_hpc.assembly.components import BuildingBlock, Components, End, crystal_components
from promof_hpc.assembly.sites import Site
from promof_hpc.assembly.stack import stack
from promof_hpc.chem.blocks import Kind
from promof_hpc.geometry.lattice import cells_of
from promof_hpc.policy import flow, so3
from promof_hpc.policy.contact_head import FORBIDDEN, contact_loss, ways_to_partners
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.features import atom_features, inputs_of, places
from promof_hpc.policy.heads import rigid_moves
from promof_hpc.policy.layers import PairAttention, Pairs, Smearing
from promof_hpc.policy.mofflow2 import RELEASED
from tests.prepared import prepared

SMALL = EngineerSettings(width=32, layers=2, heads=4, gaussians=8)


def _engineer(settings: EngineerSettings = SMALL) -> Engineer:
    torch.manual_seed(0)
    engineer = Engineer(settings)
    for parameter in engineer.parameters():  # heads start at zero, which would hide everything
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.1)
    return engineer


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _naive(attention: PairAttention, x, distances, bonded, seen, offset):
    """MOFFlow-2's attention as it is written there: one key and one value for every edge, a softmax over edges."""
    n, width = x.shape
    c = width // attention.heads
    q = attention.linear_q(x)
    out = torch.zeros_like(x)
    smear = torch.exp(-0.5 * ((distances[..., None] - offset) / (offset[1] - offset[0])) ** 2)
    for i in range(n):
        edges = [torch.cat([x[j], torch.zeros(4), smear[i, j]]) for j in range(n) if seen[i, j]]
        for j, kind in bonded.get(i, []):
            edges.append(torch.cat([x[j], functional.one_hot(torch.tensor(kind), 4).to(x), smear[i, j]]))
        keys, values = attention.linear_k(torch.stack(edges)), attention.linear_v(torch.stack(edges))
        for h in range(attention.heads):
            part = slice(h * c, (h + 1) * c)
            weights = torch.softmax(keys[:, part] @ q[i, part] / math.sqrt(c), 0)
            out[i, part] = weights @ values[:, part]
    return attention.linear_out(out)


@pytest.mark.parametrize("cap", [None, 5])
def test_factorised_attention_is_the_attention_over_edges(cap):
    torch.manual_seed(1)
    n, width, gaussians = 9, 16, 6
    attention = PairAttention(width, 4, gaussians, bonds=4).double()
    smearing = Smearing(8.0, gaussians).double()
    x, points = torch.randn(n, width, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64) * 2
    distances = torch.cdist(points, points)
    seen = torch.ones(n, n, dtype=torch.bool)
    if cap:
        seen = seen.cumsum(1) <= cap
    listed = {0: [(1, 0), (8, 3)], 1: [(0, 0)], 8: [(0, 3), (7, 2)], 7: [(8, 2)]}  # atom: (bonded atom, type)
    bonded, bond = torch.zeros(1, n, 3, dtype=torch.long), torch.full((1, n, 3), -1)
    for i, partners in listed.items():
        for slot, (j, kind) in enumerate(partners):
            bonded[0, i, slot], bond[0, i, slot] = j, kind
    linked = torch.zeros(n, n, dtype=torch.bool)
    for i, partners in listed.items():
        linked[i, [j for j, _ in partners]] = True
    pairs = Pairs(smearing(distances[None]), ~(seen | linked)[None], bonded, bond, seen[None].gather(2, bonded))
    found = attention(x[None], x[None], pairs)[0]
    expected = _naive(attention, x, distances, listed, seen, smearing.offset)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_released_rule_sees_the_first_130_atoms_and_bonded_ones():
    engineer = _engineer(EngineerSettings(**{**vars(RELEASED), "width": 32, "layers": 1, "heads": 4, "gaussians": 8}))
    fixed = stack([crystal_components(prepared("EDUSIF"))[0]] * 2)
    wide = stack([_grown(300)])
    for stacked in (fixed, wide):
        inputs = engineer.inputs(stacked)
        state = flow.prior(stacked, _generator())
        pairs = engineer._pairs(inputs, places(stacked, inputs, state).points, cells_of(state.lattice))
        count = (~pairs.blocked & inputs.real[:, :, None]).sum(-1).max()
        assert count <= 130 + inputs.bonded.shape[-1]
        assert torch.isfinite(
            engineer(engineer.prepare(stacked), state, torch.tensor(0.5).expand(len(stacked))).turns
        ).all()


def _all(clean) -> list[torch.Tensor]:
    return [clean.lattice, clean.turns, clean.centroids, clean.torsions, clean.contacts]


PLAIN = dict.fromkeys(("periodic", "sites", "relative", "directions", "vectors", "poses"), False)


@pytest.mark.parametrize("settings", [SMALL, EngineerSettings(**{**vars(SMALL), **PLAIN})], ids=["own", "plain"])
def test_what_is_predicted_depends_on_neither_padding_nor_neighbours_in_the_batch(settings):
    engineer = _engineer(settings)
    small, large = (crystal_components(prepared(n))[0] for n in ("FIPWUY", "RUBTAK01_SL"))
    alone, padded = stack([small]), stack([large, small])
    whole = flow.prior(padded, _generator(3))
    b, t = len(small.blocks), alone.torsions.shape[1]
    own = flow.State(whole.lattice[1:], whole.rotations[1:, :b], whole.centroids[1:, :b], whole.angles[1:, :t])
    with torch.no_grad():
        first = engineer(engineer.prepare(alone), own, torch.tensor([0.4]), contacts=True)
        second = engineer(engineer.prepare(padded), whole, torch.tensor([0.9, 0.4]), contacts=True)
    for x, y in zip(_all(first), _all(second), strict=True):
        cut = tuple(slice(n) for n in x.shape[1:])
        torch.testing.assert_close(x[0], y[(1, *cut)], rtol=1e-5, atol=1e-5)


def test_rows_with_one_components_object_get_the_inputs_of_rows_filled_in_apart():
    one = crystal_components(prepared("FIPWUY"))[0]
    other = crystal_components(prepared("FIPWUY"))[0]
    shared, apart = inputs_of(stack([one, one]), sites=True), inputs_of(stack([one, other]), sites=True)
    for name, value in vars(shared).items():
        torch.testing.assert_close(value, getattr(apart, name))


def test_features_of_a_carboxylate_ring_are_those_of_its_chemistry():
    mol = Chem.AddHs(Chem.MolFromSmiles("[O-]C(=O)c1ccccc1"))
    table = atom_features(mol)
    assert table.shape == (mol.GetNumAtoms(), 38)
    ring, oxygen = table[3], table[0]
    assert ring[0] == 1
    assert oxygen[0] == 0
    assert list(np.flatnonzero(ring[1:9])) == [3]
    assert list(np.flatnonzero(oxygen[1:9])) == [1]
    assert list(np.flatnonzero(ring[9:15])) == [1]  # sp2
    assert list(np.flatnonzero(ring[15:23])) == [0]  # implicit valence
    assert list(np.flatnonzero(oxygen[23:27])) == [0]
    assert list(np.flatnonzero(ring[23:27])) == [1]
    assert list(np.flatnonzero(ring[27:33])) == [3]
    assert not oxygen[27:33].any()
    assert list(np.flatnonzero(ring[33:])) == [1]
    assert list(np.flatnonzero(oxygen[33:])) == [0]


def test_tokens_are_atoms_without_plain_hydrogen_and_sites_without_features():
    components = crystal_components(prepared("EDUSIF"))[0]
    fixed = stack([components])
    inputs = inputs_of(fixed, hydrogens=False, sites=True)
    atoms = inputs.tokens[0][inputs.real[0] & ~inputs.site[0]]
    in_torsions = set(fixed.quads[fixed.torsions].ravel().tolist())
    hydrogen = set(np.flatnonzero(components.numbers == 1).tolist())
    assert set(range(len(components.numbers))) - set(atoms.tolist()) == hydrogen - in_torsions
    assert inputs.site.sum() == sum(len(e.site.elements) for e in components.node_ends)
    metals = inputs.block[0] == next(k for k, b in enumerate(components.blocks) if b.kind is Kind.METAL)
    assert not inputs.chemistry[0][metals].any()
    assert not (inputs.bond[0][metals] >= 0).any()
    kinds = {int(k) for k in inputs.bond.unique()}
    assert {-1, 0, 3} <= kinds  # single and aromatic bonds of terephthalate; kekulised double ones are carboxylate's


def test_centres_and_what_lies_behind_coincide_for_ends_that_meet():
    for name in ("EDUSIF", "FIQCEN", "OFERUN"):
        components, solution = crystal_components(prepared(name))
        fixed = stack([components])
        inputs = inputs_of(fixed)
        state = flow.states_of([solution], fixed)
        here = places(fixed, inputs, state)
        e = len(solution.partner)
        met = e + torch.from_numpy(solution.partner)
        cell = cells_of(state.lattice)[0]
        for points in (here.centres[0], here.behind[0]):
            gap = (points[met] - points[:e]) @ torch.linalg.inv(cell)
            torch.testing.assert_close(gap, gap.round(), atol=2e-3, rtol=0)
        assert (inputs.node_pattern[0] == inputs.linker_pattern[0][solution.partner]).all()


def test_ends_that_meet_have_no_way_to_go_and_others_go_to_their_partners():
    components, solution = crystal_components(prepared("EDUSIF"))
    fixed = stack([components])
    inputs, state = inputs_of(fixed, sites=True), flow.states_of([solution], fixed)
    here, cells = places(fixed, inputs, state), cells_of(state.lattice)
    certain = torch.full((1, len(solution.partner), len(solution.partner)), FORBIDDEN)
    certain[0, torch.arange(len(solution.partner)), torch.from_numpy(solution.partner)] = 0.0
    assert ways_to_partners(certain, inputs, here, cells).abs().max() < 2e-3
    nearer = certain + 1e-3 * torch.randn(certain.shape, generator=_generator())
    shift = torch.tensor([0.5, -0.2, 0.1])
    moved = replace(state, centroids=state.centroids + shift * (fixed.kinds == Kind.ORGANIC)[..., None])
    ways = ways_to_partners(nearer, inputs, places(fixed, inputs, moved), cells)
    torch.testing.assert_close(ways[0][inputs.site[0]], shift.expand(int(inputs.site.sum()), 2, 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        ways[0][inputs.donor[0]], -shift.expand(int(inputs.donor.sum()), 2, 3), atol=2e-3, rtol=0
    )
    assert not ways[0][inputs.end[0] < 0].any()


def test_moves_of_blocks_are_the_weighted_least_squares_fit_to_their_tokens():
    generator = np.random.default_rng(0)
    offset, asked = generator.normal(size=(2, 12, 3)) * 100  # so wide that nothing is held back
    weight = np.where(np.arange(12) < 7, generator.uniform(0.1, 1, 12), 0.0)
    weights = torch.from_numpy(np.stack([weight, (np.arange(12) >= 7) * 1.0]))[None]
    move, matrix = rigid_moves(torch.from_numpy(asked)[None], torch.from_numpy(offset)[None], weights)
    root = np.sqrt(weight)[:, None]
    fit = np.linalg.lstsq(np.hstack([offset, np.ones((12, 1))]) * root, asked * root, rcond=None)[0]
    np.testing.assert_allclose(move[0, 0], fit[3], rtol=1e-2)
    np.testing.assert_allclose(matrix[0, 0], fit[:3].T, atol=1e-3)
    line = torch.zeros(1, 3, 3, dtype=torch.float64)
    line[0, :, 0] = torch.tensor([-1.0, 0, 1])
    turned = rigid_moves(line.flip(-1), line, torch.ones(1, 1, 3, dtype=torch.float64))[1][0, 0]
    assert turned[:, 1:].abs().max() < 1e-12
    assert turned[2, 0] == pytest.approx(1.0, abs=0.1)


def test_pair_distances_do_not_see_which_image_a_block_is_in():
    engineer = _engineer()
    fixed = stack([crystal_components(prepared("FIQCEN"))[0]])
    inputs = engineer.inputs(fixed)
    state = flow.prior(fixed, _generator(1))
    cells = cells_of(state.lattice)
    points = places(fixed, inputs, state).points
    moved = points + (inputs.block[..., None] == 2) * cells[:, :1] - (inputs.block[..., None] == 3) * 2 * cells[:, 2:]
    one, two = (engineer._pairs(inputs, p, cells).features for p in (points, moved))
    close = (one - two).abs().amax(2) < 1e-3  # half a cell away two images tie, and rounding decides
    assert close.float().mean() > 0.999


def test_equal_blocks_are_told_apart_only_by_their_number():
    engineer = _engineer()
    components = crystal_components(prepared("EDUSIF"))[0]
    fixed = stack([components])
    group = inputs_of(fixed).group[0]
    a, b = next((i, j) for i in range(len(group)) for j in range(i) if group[i] == group[j])
    swapped = torch.arange(len(group))
    swapped[[a, b]] = swapped[[b, a]]
    state, t = flow.prior(fixed, _generator()), torch.tensor([0.5])
    with torch.no_grad():
        one = engineer(engineer.prepare(fixed), state, t).turns
        same = engineer(engineer.prepare(fixed, torch.arange(len(group))[None]), state, t).turns
        other = engineer(engineer.prepare(fixed, swapped[None]), state, t).turns
    torch.testing.assert_close(one, same)
    assert (one - other).abs().max() > 1e-4


def test_ends_with_other_donors_never_meet_and_padding_gives_no_nan():
    engineer = _engineer()
    many = [crystal_components(prepared(n))[0] for n in ("FIQCEN", "OFERUN", "FIPWUY")]
    fixed = stack(many)
    state, t = flow.prior(fixed, _generator()), torch.full((3,), 0.5)
    logits = engineer.contact_logits(engineer.prepare(fixed), state, t)
    for row, components in enumerate(many):
        for i, node in enumerate(components.node_ends):
            for j, linker in enumerate(components.linker_ends):
                assert (logits[row, i, j] == FORBIDDEN) == (node.pattern != linker.pattern)
        assert (logits[row, len(components.node_ends) :] == FORBIDDEN).all()
    loss = contact_loss(logits, torch.full(logits.shape[:2], -1))
    assert loss.item() == 0.0
    with pytest.raises(ValueError, match="no contact head"):
        _engineer(EngineerSettings(**{**vars(SMALL), "contact": False})).contact_logits(
            engineer.prepare(fixed), state, t
        )


def test_contact_loss_is_the_mean_cross_entropy_both_ways():
    logits = torch.randn(2, 4, 4, generator=_generator())
    partner = torch.tensor([[2, 0, 1, 3], [1, 0, -1, -1]])
    expected = []
    for b, i in ((b, i) for b in range(2) for i in range(4) if partner[b, i] >= 0):
        j = partner[b, i]
        expected += [
            functional.cross_entropy(logits[b, i], j),
            functional.cross_entropy(logits[b, :, j], torch.tensor(i)),
        ]
    torch.testing.assert_close(contact_loss(logits, partner), torch.stack(expected).mean())


def _grown(atoms: int, blocks: int = 20) -> Components:
    """Metal atoms and biphenyls without contacts, as many as asked for."""
    mol = Chem.AddHs(Chem.MolFromSmiles("c1ccc(cc1)-c1ccccc1"))
    numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], np.int32)
    built, left, generator = [], atoms, np.random.default_rng(0)
    while left >= len(numbers) + (blocks - len(built) - 1) and len(built) < blocks - 1:
        local = generator.normal(size=(len(numbers), 3)) * 3
        built.append(BuildingBlock(Kind.ORGANIC, "c1ccc(cc1)-c1ccccc1", numbers, local - local.mean(0), mol, None))
        left -= len(numbers)
    while len(built) < blocks:
        size = left - (blocks - len(built) - 1)
        local = generator.normal(size=(size, 3))
        built.append(BuildingBlock(Kind.METAL, "[Zn]", np.full(size, 30, np.int32), local - local.mean(0), None, None))
        left -= size
    built.sort(key=lambda b: b.kind)
    return Components(tuple(built), (), (), "")


def _lone() -> Components:
    """One metal atom with a site, one water-like donor."""
    mol = Chem.AddHs(Chem.MolFromSmiles("O"))
    water = np.array([[0.0, 0, 0.1], [0.8, 0, -0.4], [-0.8, 0, -0.4]])
    site = Site(np.array([[2.0, 0, 0]]), np.array([[2.0, 0, 0]]), np.array([8]))
    donor = Site(water[:1], water[:1], np.array([8]))
    zinc = BuildingBlock(Kind.METAL, "[Zn]", np.array([30], np.int32), np.zeros((1, 3)), None, None)
    return Components(
        (zinc, BuildingBlock(Kind.ORGANIC, "O", np.array([8, 1, 1], np.int32), water - water.mean(0), mol, None)),
        (End(0, site, np.zeros(0, np.int32), ()),),
        (End(1, donor, np.array([0], np.int32), (np.array([0], np.int32),)),), "",
    )  # fmt: skip


@pytest.mark.parametrize(
    "components",
    [_lone(), Components(_lone().blocks[:1], (), (), ""), _grown(60), _grown(300)],
    ids=["no torsions", "one block", "20 blocks", "300 atoms"],
)
def test_odd_batches_give_finite_losses_and_gradients(components):
    engineer = _engineer()
    fixed = stack([components, components])
    x1 = flow.prior(fixed, _generator(5))
    count = len(components.node_ends)
    losses = flow.loss(engineer, fixed, x1, _generator(), torch.arange(count).expand(2, count))
    losses.total.backward()
    assert all(math.isfinite(v) for v in losses.parts().values())
    assert all(torch.isfinite(p.grad).all() for p in engineer.parameters() if p.grad is not None)
    solved = flow.solve(engineer, fixed, flow.prior(fixed, _generator()), 0.0, 3)
    assert all(torch.isfinite(getattr(solved, n)).all() for n in ("lattice", "rotations", "centroids", "angles"))


def test_logarithm_is_that_of_scipy_up_to_half_a_turn():
    vectors = np.random.default_rng(0).normal(size=(200, 3))
    vectors *= (np.linspace(1e-6, np.pi - 1e-5, 200) / np.linalg.norm(vectors, axis=1))[:, None]
    found = so3.log(torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix()))
    np.testing.assert_allclose(found, vectors, atol=1e-7)
    assert torch.isfinite(so3.log(torch.eye(3).requires_grad_())).all()


def test_nearest_rotation_is_the_procrustes_one_with_the_right_gradient():
    matrices = torch.randn(6, 3, 3, generator=_generator(2), dtype=torch.float64) + torch.eye(3).double()
    found = so3.nearest_rotation(matrices)
    np.testing.assert_allclose(torch.linalg.det(found), 1, atol=1e-9)
    for matrix, rotation in zip(matrices.numpy(), found.numpy(), strict=True):
        best = Rotation.align_vectors(matrix.T, np.eye(3))[0].as_matrix()
        np.testing.assert_allclose(rotation, best, atol=1e-6)
    clear = torch.eye(3).double() + 0.4 * torch.randn(4, 3, 3, generator=_generator(4), dtype=torch.float64)
    clear.requires_grad_()
    assert torch.autograd.gradcheck(so3.nearest_rotation, (clear,))
    assert torch.autograd.gradcheck(lambda m: so3.log(so3.nearest_rotation(m)), (clear,))
    flat = torch.zeros(1, 3, 3, requires_grad=True)
    so3.nearest_rotation(flat).sum().backward()
    assert torch.isfinite(flat.grad).all()
