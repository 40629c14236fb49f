"""Kinds of runs and the configuration class of each."""

from __future__ import annotations

from promof_hpc.config import DesignConfig, RunConfig, ScreenConfig, load_config
from promof_hpc.design.campaign.learned import success_ids
from promof_hpc.errors import UsageError
from promof_hpc.store.budget import all_committed
from promof_hpc.store.run_dir import RunDir, has_ended, is_ingested, raised_budget

CONFIG_OF_KIND: dict[str, type[RunConfig]] = {
    "screen": ScreenConfig,
    "reference": ScreenConfig,
    "design": DesignConfig,
}


def kind_of(run: RunDir) -> str:
    """What kind of run it is: a key of `CONFIG_OF_KIND`."""
    return str(run.provenance_record()["kind"])


def config_of(run: RunDir) -> RunConfig:
    """The configuration that a run was begun with, with the budget that it has now."""
    config = load_config(CONFIG_OF_KIND[kind_of(run)], run.config)
    raised = raised_budget(run)
    return config if raised is None else config.model_copy(update={"budget": raised})


def design_of(run: RunDir) -> DesignConfig:
    """The configuration of a campaign.

    Raises:
        UsageError: the run is of another kind.
    """
    config = config_of(run)
    if not isinstance(config, DesignConfig):
        raise UsageError(f"{run.path} is a {kind_of(run)} run, not a design.")
    return config


def is_evaluated(run: RunDir) -> bool:
    """Whether nothing is left to propose, read or evaluate; quick at any size, since a job asks before it requeues."""
    complete = has_ended(run) if kind_of(run) == "design" else is_ingested(run)
    return complete and all_committed(run)


def is_done(run: RunDir) -> bool:
    """Whether nothing is left to do, the fit of a reference set and a campaign's second opinion included."""
    from hpc.reference import is_fitted

    if not is_evaluated(run):
        return False
    kind = kind_of(run)
    if kind == "design":
        return design_of(run).second_opinion is None or set(success_ids(run)) <= set(run.opinions_given())
    return kind != "reference" or is_fitted(run)


def as_screening(run: RunDir) -> ScreenConfig:
    """The configuration of a run of any kind, as tables and exports take it."""
    config = config_of(run)
    if isinstance(config, ScreenConfig):
        return config
    shared = {name: getattr(config, name) for name in RunConfig.model_fields}
    return ScreenConfig(library="design", **shared)
