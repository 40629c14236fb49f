"""What a submission would ask of a site: the paper's campaign on every shipped profile, held as text.

Set PROMOF_WRITE_GOLDEN=1 to write tests/golden/paper anew; then read the difference.
"""

import os
import re
import sys
from pathlib import Path

import pytest

import promof_hpc
from hpc.cluster.journeys import submit_design
from hpc.cluster.plan import plan_text
from hpc.cluster.site import known_sites, load_site
from hpc.cluster.wanted import wanted_jobs
from promof_hpc.config import DesignConfig, ScreenConfig, load_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.run_dir import RunDir

GOLDEN = Path(__file__).parents[1] / "golden" / "paper"
WRITE = os.environ.get("PROMOF_WRITE_GOLDEN") == "1"
PAPER = Path(promof_hpc.__file__).parent / "configs" / "paper.yaml"
RUN = Path("/data/runs/paper")


@pytest.fixture
def paper() -> DesignConfig:
    return load_config(DesignConfig, PAPER)


def _dry_run(config, site, capsys):
    """What `promof submit design --dry-run` prints, without what changes with every line of our code."""
    try:
        submit_design(config, RUN, site, dry_run=True)
    except PromofError as error:
        print(f"promof: {error}")
    text = re.sub(r"code/[0-9a-f]{16}", "code/DIGEST", capsys.readouterr().out)
    return re.sub(r"(Code copied into the run:) .*", r"\1 ...", text)


@pytest.mark.parametrize("site", known_sites())
def test_dry_run_of_the_papers_campaign_is_the_one_on_record(paper, site, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/promof/bin/python")
    text, path = _dry_run(paper, site, capsys), GOLDEN / f"{site}.txt"
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert not RUN.exists()


def test_nothing_else_is_on_record():
    assert {path.stem for path in GOLDEN.iterdir()} == set(known_sites())


@pytest.mark.parametrize("key", ["evaluation.potential.device", "training.device"])
def test_gpus_that_the_profile_does_not_ask_for_are_missed_before_anything_is_submitted(paper, key):
    cpu = {"evaluation": {"potential": {"name": "lennard-jones"}}, "training": {"device": "cpu"}}
    section = cpu["evaluation"]["potential"] if key.startswith("evaluation") else cpu["training"]
    config = DesignConfig(**cpu | {"budget": 64})
    site = load_site("generic")
    assert wanted_jobs(RunDir(RUN), config, site, "design")
    section["device"] = "cuda"
    with pytest.raises(UsageError, match=f"{re.escape(key)} is cuda.*gpus_per_node"):
        wanted_jobs(RunDir(RUN), DesignConfig(**cpu | {"budget": 64}), site, "design")


def test_a_run_longer_than_a_job_is_told_how_many_must_follow_one_another(paper):
    """10,000 evaluations of a minute on 8 ranks take 20.8 hours."""
    for hours, links in ((21, None), (20, 2), (1, 21)):
        site = load_site("modules-openmpi")
        site = site.model_copy(update={"evaluate": site.evaluate.model_copy(update={"time_min": 60 * hours})})
        text = plan_text(RunDir(RUN), paper, site, wanted_jobs(RunDir(RUN), paper, site, "design"))
        told = re.findall(r"--chain (\d+) submits (\d+)", text)
        assert told == ([(str(links - 1), str(links))] if links else [])


def test_gpus_are_counted_as_they_are_allocated_and_chains_with_them(paper):
    """A job of four GPUs a node but one rank asks for one; a job without GPUs costs none; links count as jobs."""
    site = load_site("modules-openmpi")
    config = paper.model_copy(update={"farm": paper.farm.model_copy(update={"ranks": 1})})
    text = plan_text(RunDir(RUN), config, site, wanted_jobs(RunDir(RUN), config, site, "design"), chain=1)
    assert "promof-evaluate-paper: 1 x 1 tasks, 16 CPUs each, 1 GPU a node, 1440 min, and 1 more that go on" in text
    assert "Evaluation: 166.7 GPU-hours, 166.7 h on 1 ranks." in text
    assert f"The jobs' limits allow {2 * 24 * (4 + 1)} GPU-hours at most" in text
    whole = site.model_copy(update={"exclusive": True})
    text = plan_text(RunDir(RUN), config, whole, wanted_jobs(RunDir(RUN), config, whole, "design"))
    assert "Evaluation: 666.7 GPU-hours, 166.7 h on 1 ranks." in text
    assert "3 of 4 GPUs have no rank: farm.ranks=4 would use all" in text
    screening = ScreenConfig(library="coremof:2019-ASR", farm={"ranks": 4})
    text = plan_text(RunDir(RUN), screening, site, wanted_jobs(RunDir(RUN), screening, site, "screen"))
    assert "limits allow 96 GPU-hours and 12 node-hours without GPUs at most" in text
