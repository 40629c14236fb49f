"""Which strategies there are, by name; each is imported only when it is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from promof_hpc.config import DesignConfig
from promof_hpc.config.section import nearest
from promof_hpc.design.learning.team import ALONE, Team
from promof_hpc.design.strategy import Strategy
from promof_hpc.errors import UsageError

STRATEGIES = {
    "promof": "promof_hpc.design.strategies.promof:Promof",
    "sample": "promof_hpc.design.strategies.sample:Sample",
    "sample_filter": "promof_hpc.design.strategies.sample:SampleFilter",
    "genetic": "promof_hpc.design.strategies.genetic:Genetic",
    "random": "promof_hpc.design.strategies.random_search:RandomSearch",
    "external": "promof_hpc.design.strategies.external:External",
}
"""Where each is: a class that is called with the run's configuration."""


def build(config: DesignConfig, team: Team = ALONE) -> Strategy:
    """The strategy that a configuration names, registered or a user's own `module:Class`, in its first state.

    Args:
        team: processes that learn together; only a strategy whose class takes one can do so.

    Raises:
        UsageError: it is not known, cannot be imported or cannot be made from this configuration.
    """
    name = config.strategy
    known = ", ".join(STRATEGIES)
    place = STRATEGIES.get(name, name)
    module_name, colon, class_name = place.partition(":")
    if not colon:
        hint = nearest(name, STRATEGIES)
        raise UsageError(f"Unknown strategy '{name}'{hint}. Known: {known}, or your own as module:Class.")
    try:
        make: Callable[..., Strategy] = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        if name in STRATEGIES:  # a part of this package: its own defect, or a dependency that is not installed
            raise
        raise UsageError(
            f"Cannot load the strategy '{name}' ({error}); is its module in PYTHONPATH? Known: {known}."
        ) from error
    takes_team = "team" in inspect.signature(make).parameters
    if team.size > 1 and not takes_team:
        raise UsageError(f"The strategy '{name}' does not learn in a team of processes; set training.tasks to 1.")
    strategy = make(config, team=team) if takes_team else make(config)
    missing = [m for m in ("propose", "learn", "save", "load") if not callable(getattr(strategy, m, None))]
    if missing:
        raise UsageError(f"The strategy '{name}' has no method {', '.join(missing)}; design/strategy.py says what for.")
    return strategy
