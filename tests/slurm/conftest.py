"""One private Slurm for all tests of this folder; every test finds it without jobs and with all nodes idle."""

import os
from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.daemons import how_to_install, missing_packages

HERE = Path(__file__).parent
REQUIRE = "PROMOF_REQUIRE_SLURM"  # set to 1 where absent packages are a failure, as in CI


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


def pytest_terminal_summary(terminalreporter):
    """Each fault and moment, a line each: whether it was survived, and what it cost."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            facts = dict(report.user_properties)
            if "fault" in facts and (report.when == "call" or outcome == "failed"):
                cost = facts.get("lost", "ended before what it cost was known")
                terminalreporter.write_line(f"{outcome.upper()} {facts['fault']}: {cost}")


@pytest.fixture(scope="session")
def installed():
    """Slurm is; otherwise the test is skipped with the reason, or fails where it may not be."""
    if missing := missing_packages():
        (pytest.fail if os.environ.get(REQUIRE) == "1" else pytest.skip)(how_to_install(missing))


@pytest.fixture(scope="session")
def private_slurm(installed, tmp_path_factory):
    with PrivateSlurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(private_slurm):
    yield private_slurm
    private_slurm.clear()
