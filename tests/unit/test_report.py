"""The report page: what it says, that it is safe with any text, whole without a network, and of bounded size."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import fields
from html.parser import HTMLParser

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.report.figures import MOST_POINTS, Points, histogram, scatter
from promof_hpc.report.html import render, write_page
from promof_hpc.report.svg import Scale
from promof_hpc.report.utilisation import fold_events, gantt
from promof_hpc.report.viewer import view
from promof_hpc.store.candidates import Entry
from promof_hpc.store.schema import Outcome, Row
from promof_hpc.structure import Structure
from tests.report_data import best, diamond, finished, many, report

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements, attributes, visible text, and the content of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.text += " "
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def payload(self) -> dict:
        return json.loads(self.raw["script"][0])


def small_report(**content):
    rows = [finished("1"), finished("2", e_rel_ev_per_atom=0.08, pld_relaxed_ang=7.0)]
    refused = [Entry("bad", "", "overlap", "bad: O4 and O16 are 0.50 Å apart")]
    given = {"best": [best("first", rows[0])], "events": [batch(0, 0, 10), batch(1, 0, 5)], **content}
    return report(["first", "second"], rows, refused, **given)


def batch(rank, start, end, host="node01"):
    return {"rank": rank, "host": host, "batch": f"b{rank}-{start}", "start_s": start, "end_s": end, "structures": 4}


def test_headline_outcomes_and_reasons_are_those_of_the_table():
    page = Page(render(small_report(budget={"budget": 10, "issued": 2, "committed": 2, "in_flight": 0, "wasted": 1})))
    assert "library entries 3 2 could be read" in page.words
    assert "relaxed 2 100 % of those read" in page.words
    assert "converged 2 100 % of those relaxed" in page.words
    assert "lowest E_rel +0.030 eV/atom first" in page.words
    assert "converged 2 66.7 %" in page.words
    assert "refused when read overlap 1 bad: O4 and O16 are 0.50 Å apart" in page.words
    assert "2 of 10 evaluations of the budget are spent; 2 were issued, 1 were computed twice" in page.words


def test_page_asks_nothing_of_any_network():
    page = Page(render(small_report()))
    allowed = ("#", "data:", "table.csv", "table.parquet", "relaxed.extxyz")
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(allowed), value
    assert not {"link", "iframe", "object", "embed", "base"} & {t for t, a in page.elements if a.get("rel") != "icon"}
    for style in page.raw["style"]:
        assert "url(" not in style
        assert "@import" not in style
    # whatever a library inside the page might try, the browser refuses: nothing is allowed to connect
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src"}
    assert not re.search(r"https?:|\*", policy)


def test_hostile_text_stays_text():
    row = finished("1", formula=HOSTILE, reason=HOSTILE, checks_failed=HOSTILE, energy_note=HOSTILE, host=HOSTILE)
    data = report(
        [HOSTILE], [row], [Entry(HOSTILE + "2", "", HOSTILE, HOSTILE)], title=HOSTILE, attribution=[HOSTILE],
        provenance={HOSTILE: {"id": HOSTILE}}, best=[best(HOSTILE, row)], events=[batch(0, 0, 9, HOSTILE)],
    )  # fmt: skip
    page, plain = Page(render(data)), Page(render(small_report()))
    kinds = [tag for tag, _ in page.elements]
    assert kinds.count("script") == [tag for tag, _ in plain.elements].count("script") == 3
    assert "img" not in kinds
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert HOSTILE in page.text
    assert "<" not in page.raw["script"][0]  # nothing that could end the script element, in any spelling
    assert page.payload["records"][0]["name"] == HOSTILE
    assert page.payload["gallery"][0]["name"] == HOSTILE


def everything_missing():
    floats = [f.name for f in fields(Row) if f.type == "float" and f.name != "wall_s"]
    nothing = dict.fromkeys(floats, math.nan)
    return report(["x"], [finished("1", outcome=Outcome.NAN, **nothing)])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (report([], []), "This run has no entries yet."),
        (report([], [], [Entry("a", "", "empty", "x"), Entry("b", "", "empty", "x")]), "Nothing was measured"),
        (report(["one"], [finished("1")]), "Each point is a structure"),
        (report(["steps"], [finished("1", outcome=Outcome.MAX_STEPS)]), "No structure has a place"),
        (everything_missing(), "No structure has both an energy and a pore size"),
        (report(["a"], [finished("1", energy_note="no reference set", e_rel_ev_per_atom=math.nan)]),
         "1 structure has no E_rel: no reference set."),
    ],
    ids=["no entries", "all refused", "one row", "nothing ranked", "nothing known", "no reference"],
)  # fmt: skip
def test_thin_runs_have_a_page_with_a_clear_sentence(data, sentence):
    page = Page(render(data))
    assert sentence in page.words
    assert not re.search(r"\bnan\b|<NA>|\bNone\b", page.words)
    assert page.payload["gallery"] == []


def test_page_is_the_same_each_time_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "index.html"
    write_page(report([], []), path)
    assert write_page(small_report(), path) == path
    assert path.read_text(encoding="utf-8") == render(small_report())
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_viewer_library_and_licence_come_only_with_pictures():
    with_pictures, without = render(small_report()), render(small_report(best=[]))
    assert "University of Pittsburgh" in with_pictures
    assert "THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS" in with_pictures
    assert len(without) < 100_000 < 500_000 < len(with_pictures)


def test_pictures_hold_both_states_and_cifs_that_other_programs_read(tmp_path):
    (picture,) = Page(render(small_report())).payload["gallery"]
    for state, stretch in (("before", 1.0), ("after", 1.01)):
        path = tmp_path / f"{picture['stem']}-{state}.cif"
        path.write_text(picture[state]["cif"], encoding="utf-8")
        assert ase.io.read(path).get_volume() == pytest.approx(diamond(stretch).volume, rel=1e-6)


@pytest.mark.parametrize("moved", [0.0, 7.3, -11.0])
def test_drawn_bonds_are_those_of_diamond_wherever_its_atoms_lie(moved):
    crystal = diamond()
    drawn = view(Structure(crystal.numbers, crystal.positions + np.array([moved, 0.5, -moved]), crystal.cell))
    cell, positions = np.array(drawn["cell"]), np.array(drawn["positions"])
    fractional = positions @ np.linalg.inv(cell)
    assert (fractional > -0.01).all()
    assert (fractional < 1.01).all()
    assert len(drawn["bonds"]) == 16  # 8 atoms with 4 bonds each
    for i, j, *shift in drawn["bonds"]:
        assert np.linalg.norm(positions[j] + shift @ cell - positions[i]) == pytest.approx(1.545, abs=0.03)


def test_large_tables_are_thinned_to_a_page_of_bounded_size():
    count = 20_000
    rows = many(count)
    page = render(report([f"mof-{k:06d}" for k in range(count)], rows))
    assert len(page) < 3_000_000
    assert 0 < page.count("<circle") <= MOST_POINTS
    assert 'class="density"' in page
    assert "The first 200 of 20,000 lines are here" in Page(page).words


@pytest.mark.full
def test_a_hundred_thousand_rows_stay_below_fifteen_megabytes():
    rows = many(100_000)
    page = render(report([f"a-rather-long-name-{k:06d}" for k in range(len(rows))], rows))
    assert len(page.encode()) < 15_000_000


def test_reasons_that_differ_only_in_numbers_are_counted_together():
    page = Page(render(report([f"m{k}" for k in range(40)], many(40))))
    assert re.search(r"exploded volume … % at step … 4 m(\d+): volume \+\1 % at step \1 ", page.words)


def test_histogram_counts_every_value_and_says_how_many_lie_beyond():
    values = np.concatenate([np.random.default_rng(1).normal(0, 1, 500), [1e6, -1e6]])
    drawn = histogram(values, np.ones(len(values), bool), "x (Å)")
    counts = [int(n) for n in re.findall(r'class="bar-all".*?<title>[^<]*: (\d+)</title>', drawn)]
    assert sum(counts) == 500
    assert "2 beyond the axis" in drawn


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-9, 1e12])
def test_figures_of_equal_values_are_drawn(value):
    values = np.full(30, value)
    points = Points(values, values, np.ones(30, bool), np.arange(30), ["x"] * 30)
    assert "30" in histogram(values, np.ones(30, bool), "x")
    assert scatter(points, "x", "y").count("<circle") == 30
    assert "nan" not in histogram(values, np.ones(30, bool), "x")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_inside_the_axis(low, length):
    ticks = Scale(low, low + length, 0, 100).ticks(5)
    assert 2 <= len(ticks) <= 7
    assert low - 1e-6 * length <= ticks[0] <= ticks[-1] <= low + length * (1 + 1e-6)


def test_ranks_are_busy_for_the_share_of_the_working_time_that_they_computed():
    use = fold_events([batch(0, 0, 10), batch(1, 2, 7), {"event": "leave", "rank": 1}])
    assert [lane.busy for lane in use.lanes] == [pytest.approx(1.0), pytest.approx(0.5)]
    assert use.busy == pytest.approx(0.75)
    assert use.structures == 8


def test_pauses_between_jobs_are_no_idle_time():
    day = 86_400
    use = fold_events([batch(0, 0, 600), batch(0, day, day + 600), batch(1, day, day + 300)])
    assert use.working_s == pytest.approx(1200)
    assert use.pauses == ((pytest.approx(600), pytest.approx(day - 600)),)
    assert [lane.busy for lane in use.lanes] == [pytest.approx(1.0), pytest.approx(0.25)]


def test_a_rank_that_two_jobs_shared_is_never_more_than_busy():
    use = fold_events([batch(0, 0, 100), batch(0, 50, 150)])
    assert use.busy == pytest.approx(1.0)


def test_figure_of_many_ranks_and_batches_stays_small():
    events = [batch(rank, k * 10.0, k * 10.0 + 9.5) for rank in range(100) for k in range(500)]
    drawn = gantt(fold_events(events))
    assert drawn.count('class="lane"') == 64
    assert len(drawn) < 4_000_000
    assert fold_events([]) is None


ACTIONS = """<script>
addEventListener("load", () => setTimeout(() => {
  const out = {};
  document.querySelector("circle").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  out.facts = document.querySelector("#facts h3").textContent;
  out.selected = document.querySelectorAll("tr.selected").length;
  const rows = () => [...document.querySelectorAll("#lines tbody tr:not([hidden])")];
  const names = () => rows().map((row) => row.querySelector(".name").firstChild.data);
  const heads = [...document.querySelectorAll("#lines th")];
  const pore = heads.find((h) => h.textContent.startsWith("PLD")).querySelector("button");
  pore.click();
  out.narrowFirst = names();
  pore.click();
  out.wideFirst = names();
  const search = document.getElementById("search");
  search.value = "SECOND converged";
  search.dispatchEvent(new Event("input"));
  out.found = names();
  document.title = "RESULT " + JSON.stringify(out);
}, 300));
</script></body>"""


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_selecting_sorting_and_searching_work_in_a_browser_without_console_errors(tmp_path):
    path = tmp_path / "index.html"
    path.write_text(render(small_report()).replace("</body>", ACTIONS), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search(r"<title>RESULT (.*?)</title>", done.stdout)[1])
    assert found == {
        "facts": "first", "selected": 1, "narrowFirst": ["first", "second", "bad"],
        "wideFirst": ["second", "first", "bad"], "found": ["second"],
    }  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line and "WebGL" not in line]
