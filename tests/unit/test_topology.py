import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from promof_hpc.chem.decompose import decompose
from promof_hpc.geometry.topology import (
    Edge,
    LabelledNet,
    contracted,
    coordination_sequences,
    cycle_rank,
    dimensionality,
    labelled_net,
    net_count,
    net_key,
    oriented,
    pieces,
    signature,
)
from promof_hpc.structure import Structure

DATA = Path(__file__).parents[1] / "data"

PCU: list[Edge] = [(0, 0, (1, 0, 0)), (0, 0, (0, 1, 0)), (0, 0, (0, 0, 1))]
DIA: list[Edge] = [(0, 1, (0, 0, 0)), (0, 1, (-1, 0, 0)), (0, 1, (0, -1, 0)), (0, 1, (0, 0, -1))]


def net_of(name: str) -> LabelledNet:
    return labelled_net(decompose(Structure.from_ase(read(DATA / name))))


# coordination sequences as listed by RCSR (tbo: O'Keeffe et al., 2008)
@pytest.mark.parametrize(
    ("name", "sequences", "rank"),
    [
        ("mofs/EDUSIF_clean.cif", [(6, 18, 38, 66, 102)], 5),
        ("mofs/RUBTAK01_SL.cif", [(12, 42, 92, 162, 252)], 6),
        ("mofs/OFERUN_clean.cif", [(4, 10, 20, 34, 52)], 7),
        ("mofs/FIQCEN_clean.cif", [(3, 9, 15, 33), (4, 8, 20, 30)], 11),
        ("cases/C000_base_pmx3.cif", [(4, 12, 24, 42, 64)], 3),
    ],
)
def test_known_frameworks_have_the_nets_of_rcsr(name: str, sequences: list[tuple[int, ...]], rank: int) -> None:
    net = net_of(name)
    vertices, edges = contracted(range(len(net.kinds)), net.edges)
    assert coordination_sequences(vertices, edges, shells=len(sequences[0])) == sequences
    assert cycle_rank(len(net.kinds), net.edges) == rank


def test_pcu_and_fcu_follow_their_closed_forms() -> None:
    assert coordination_sequences([0], PCU, 6) == [tuple(4 * k * k + 2 for k in range(1, 7))]
    fcu: list[Edge] = [*PCU, (0, 0, (1, -1, 0)), (0, 0, (1, 0, -1)), (0, 0, (0, 1, -1))]
    assert coordination_sequences([0], fcu, 6) == [tuple(10 * k * k + 2 for k in range(1, 7))]


@pytest.mark.parametrize("directions", [0, 1, 2, 3])
def test_dimensionality_counts_the_directions_of_repetition(directions: int) -> None:
    assert dimensionality(1, PCU[:directions]) == directions


def test_translated_nets_in_one_connected_quotient_graph_are_counted() -> None:
    # pcu whose every link spans two cells: 8 nets, each on a sublattice of index 8
    doubled: list[Edge] = [(0, 0, (2, 0, 0)), (0, 0, (0, 2, 0)), (0, 0, (0, 0, 2))]
    assert [(p.dimensionality, p.nets) for p in pieces([0], doubled)] == [(3, 8)]
    assert net_count(2, [*PCU, (1, 1, (1, 0, 0)), (1, 1, (0, 1, 0)), (1, 1, (0, 0, 1))]) == 2


def test_contraction_drops_dead_ends_and_turns_bridges_into_links() -> None:
    # pcu with a linker on each link and a pendant ligand on the node
    edges: list[Edge] = [(0, 4, (0, 0, 0))]
    for linker, (_, _, shift) in enumerate(PCU, start=1):
        edges += [(0, linker, (0, 0, 0)), oriented(linker, 0, shift)]
    vertices, kept = contracted(range(5), edges)
    assert vertices == [0]
    assert sorted(kept) == sorted(PCU)


def test_a_lone_cycle_keeps_a_vertex() -> None:
    chain: list[Edge] = [(0, 1, (0, 0, 0)), (0, 1, (-1, 0, 0))]
    assert contracted(range(2), chain) == ([1], [(1, 1, (1, 0, 0))])


@st.composite
def nets(draw: st.DrawFn) -> LabelledNet:
    """Random bipartite nets of two to six blocks, periodic in three directions."""
    nodes, linkers = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    shift = st.tuples(*[st.integers(-1, 1)] * 3)
    edge = st.tuples(st.integers(0, nodes - 1), st.integers(nodes, nodes + linkers - 1), shift)
    edges = tuple(draw(st.lists(edge, min_size=5, max_size=10, unique=True)))
    sizes = tuple(draw(st.lists(st.integers(1, 2), min_size=len(edges), max_size=len(edges))))
    assume(dimensionality(nodes + linkers, edges) == 3)
    return LabelledNet((0,) * nodes + (1,) * linkers, edges, sizes)


def renumbered(net: LabelledNet, order: list[int], gauge: list[tuple[int, ...]], flips: list[bool]) -> LabelledNet:
    """The same net with other vertex numbers, other home images and some edges written the other way round."""
    kinds = [0] * len(net.kinds)
    for old, new in enumerate(order):
        kinds[new] = net.kinds[old]
    edges: list[Edge] = []
    for (p, q, s), flip in zip(net.edges, flips, strict=True):
        x, y, z = (int(v) for v in np.array(s) + gauge[q] - np.array(gauge[p]))
        edge: Edge = (order[p], order[q], (x, y, z))
        edges.append((edge[1], edge[0], (-x, -y, -z)) if flip else edge)
    return LabelledNet(tuple(kinds), tuple(edges), net.sizes)


def doubled_along_x(net: LabelledNet) -> LabelledNet:
    count = len(net.kinds)
    edges: list[Edge] = []
    for half in (0, 1):
        for p, q, (x, y, z) in net.edges:
            edges.append((p + half * count, q + (x + half) % 2 * count, ((x + half) // 2, y, z)))
    return LabelledNet(net.kinds * 2, tuple(edges), net.sizes * 2)


@settings(max_examples=40, deadline=None)
@given(net=nets(), data=st.data())
def test_keys_do_not_depend_on_numbers_images_or_cell(net: LabelledNet, data: st.DataObject) -> None:
    count = len(net.kinds)
    order = data.draw(st.permutations(range(count)))
    gauge = data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=count, max_size=count))
    flips = data.draw(st.lists(st.booleans(), min_size=len(net.edges), max_size=len(net.edges)))
    other = renumbered(net, list(order), list(gauge), flips)
    double = doubled_along_x(net)
    for level in ("size", "count"):
        assert net_key(other, level) == net_key(net, level) == net_key(double, level)
        assert signature(other, level) == signature(net, level) == signature(double, level)
    assert dimensionality(count, other.edges) == dimensionality(2 * count, double.edges) == 3


@settings(max_examples=40, deadline=None)
@given(net=nets(), data=st.data())
def test_number_of_three_periodic_nets_does_not_depend_on_the_cell(net: LabelledNet, data: st.DataObject) -> None:
    count = len(net.kinds)
    assume(all(p.dimensionality == 3 for p in pieces(range(count), net.edges)))
    gauge = data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=count, max_size=count))
    other = renumbered(net, list(range(count)), list(gauge), [False] * len(net.edges))
    double = doubled_along_x(net)
    assert net_count(count, net.edges) == net_count(count, other.edges) == net_count(2 * count, double.edges)


def test_different_nets_have_different_keys() -> None:
    names = ["mofs/EDUSIF_clean.cif", "mofs/RUBTAK01_SL.cif", "mofs/OFERUN_clean.cif", "mofs/FIQCEN_clean.cif"]
    found = [net_of(n) for n in [*names, "cases/C000_base_pmx3.cif"]]
    assert len({net_key(n) for n in found}) == 5
    # ZIF-8 and Zn(CN)2 have the same blocks by contact sizes (4-connected metal, bridging linker) and different nets
    assert signature(found[2]) == signature(found[4])


def test_size_level_tells_contacts_apart_that_count_level_does_not() -> None:
    single = LabelledNet((0, 1), tuple(DIA), (1, 1, 1, 1))
    chelating = LabelledNet((0, 1), tuple(DIA), (2, 2, 2, 2))
    assert net_key(single) != net_key(chelating)
    assert signature(single) != signature(chelating)
    assert net_key(single, "count") == net_key(chelating, "count")
    assert signature(single, "count") == signature(chelating, "count")


def test_keys_are_the_same_in_another_process() -> None:
    program = (
        "from promof_hpc.geometry.topology import LabelledNet, net_key, signature;"
        f"n = LabelledNet((0, 1), tuple({DIA!r}), (1, 2, 1, 2)); print(net_key(n), signature(n))"
    )
    outside = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    net = LabelledNet((0, 1), tuple(DIA), (1, 2, 1, 2))
    assert outside == [net_key(net), signature(net)]
