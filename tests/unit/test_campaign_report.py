"""The campaign's part of a page: curves, gates and the front say what the rounds say, and odd values break nothing."""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.design.judging.second_opinion import SecondOpinion
from promof_hpc.report.campaign import CampaignStory, RoundFacts
from promof_hpc.report.campaign_figures import (
    energies,
    front,
    headline,
    learning,
    pareto,
    progress,
    second_opinion,
    widths,
)
from promof_hpc.report.curves import Curve, curves, distributions
from promof_hpc.report.html import render
from tests.report_data import finished, report

STYLE = Path(__file__).parents[2] / "promof_hpc/report/assets/report.css"


def story(rounds, **changes):
    content = {
        "aim": "a pore of 6 Å",
        "assembly": "from nets",
        "strategy": "promof",
        "rounds": tuple(rounds),
        "gates": (("proposed", 40), ("passed the geometry gate", 10), ("target met: success", 2)),
        "refusals": (("overlap", 20), ("<b>odd</b>", 10)),
        "energies": {"real MOFs": np.linspace(-0.1, 0.1, 50), "first quarter": np.array([0.2, 0.3]),
                     "last quarter": np.array([math.nan])},
        "targets": np.array([[0.1, 0.3], [0.5, 0.1], [0.6, 0.2], [math.nan, 0.0]]),
        "property_axis": "distance from the wanted pore (Å)",
        "displacements_ang": np.array([0.4, 0.6]),
        "dead_share": 0.25,
        "strict": 1,
    }  # fmt: skip
    return CampaignStory(**(content | changes))


ROUNDS = [
    RoundFacts(0, 4, 20, 5, -8.0, -3.0, -3.0, 0, 0.4, {"chemist_kl": 0.0, "dead_groups_share": 0.5}),
    RoundFacts(1, 9, 20, 5, -6.0, 0.5, 0.5, 2, math.nan, {"chemist_kl": 0.1}),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats_in_both_values(points):
    values = np.array(points, float)
    found = {tuple(p) for p in pareto(values).tolist()}
    beaten = {
        tuple(p) for p in values.tolist() if any((q <= np.array(p)).all() and (q < np.array(p)).any() for q in values)
    }
    assert found == {tuple(p) for p in values.tolist()} - beaten


def test_a_curve_leaves_out_what_is_no_number_and_says_where_it_ends():
    figure = ET.fromstring(curves([Curve("a", np.array([1.0, 2.0, 3.0]), np.array([5.0, math.nan, 7.0]))], "x", "y"))
    assert len(figure.findall("circle")) == 2
    assert "a ends at 7" in figure.attrib["aria-label"]


def test_nothing_to_draw_gives_no_figure():
    assert curves([Curve("a", np.array([1.0]), np.array([math.nan]))], "x", "y") == ""
    assert distributions([("a", np.zeros(0))], "x") == ""
    assert front(story(ROUNDS, targets=np.zeros((0, 2)))) == ""
    assert progress(story([])) == []


def test_a_distribution_of_one_value_is_drawn():
    figure = ET.fromstring(distributions([("one", np.array([0.5]))], "E"))
    assert "one 0.5" in figure.attrib["aria-label"]


def test_figures_of_a_campaign_carry_its_numbers():
    told = story(ROUNDS)
    reward = ET.fromstring(progress(told)[0].svg)
    assert "mean ends at -6" in reward.attrib["aria-label"]
    assert "best so far ends at 0.5" in reward.attrib["aria-label"]
    assert [f.title for f in learning(told)] == ["KL to the pretrained policies", "Groups without signal"]
    assert [f.value for f in headline(told)] == ["40", "9", "2", "0.50"]
    assert widths(told.gates)[1] == ("passed the geometry gate", 10, 25.0)


def test_the_page_of_a_design_has_its_campaign_and_escapes_what_came_from_outside():
    page = render(report(["r00000-s00-a00"], [finished("a" * 32)], campaign=story(ROUNDS)))
    assert 'id="campaign"' in page
    assert "25 % of the groups carried no learning signal" in page
    assert "<b>odd</b>" not in page
    assert "&lt;b&gt;odd" in page


def test_no_figure_is_drawn_larger_than_it_is_so_that_all_text_has_one_size():
    told = story(ROUNDS)
    figures = [*(f.svg for f in progress(told)), energies(told), front(told)]
    for figure in map(ET.fromstring, figures):
        assert figure.attrib["style"] == f"max-width:{figure.attrib['viewBox'].split()[2]}px"
    sizes = re.findall(r"svg[^{]*\{[^}]*font(?:-size)?: ?([\d.]+)px", STYLE.read_text())
    assert max(map(float, sizes)) <= 12


def test_the_page_tells_what_a_second_potential_says_of_the_successes():
    opinion = SecondOpinion("chgnet-0.3.0", "abcdef012345" + "0" * 52, successes=4, asked=4, stable=3, unscorable=1)
    told = story(ROUNDS, second_opinion=opinion)
    page = render(report(["r00000-s00-a00"], [finished("a" * 32)], campaign=told))
    assert "Second opinion of chgnet-0.3.0: 3 of 4 successes stable too (75 %), 1 cannot be scored by it." in page
    assert "weights abcdef012345…" in page
    assert "it has no reference set for energies." in page
    (figure,) = [f for f in headline(told) if f.label == "second opinion"]
    assert (figure.value, figure.unit) == ("75", "%")
    judged = second_opinion(story(ROUNDS, second_opinion=replace(opinion, energy_judged=True)))
    assert judged.endswith("judged by forces, bonds, volume and energy.")


def test_without_successes_the_page_says_that_there_are_none_to_ask_about():
    told = story(ROUNDS, second_opinion=SecondOpinion("chgnet-0.3.0"))
    assert second_opinion(told) == "Second opinion of chgnet-0.3.0: no successes to ask about."
    assert "second opinion" not in [f.label for f in headline(told)]
    assert second_opinion(story(ROUNDS)) == ""


def test_the_page_of_a_screening_has_none():
    assert 'id="campaign"' not in render(report(["x"], [finished("a" * 32)]))
