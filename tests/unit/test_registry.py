from pathlib import Path

import pytest

from promof_hpc.config import DesignConfig
from promof_hpc.config.design import STRATEGIES as IN_CONFIGURATION
from promof_hpc.design import registry
from promof_hpc.design.strategies.external import External
from promof_hpc.errors import UsageError

DEMO = Path(__file__).parents[2] / "promof_hpc" / "data" / "demo"


class Nothing:
    """A user's own strategy."""

    def __init__(self, config):
        self.seed = config.seed

    def propose(self, asked): ...

    def learn(self, asked, proposals, judged): ...

    def save(self, folder): ...

    def load(self, folder): ...


class Half:
    def __init__(self, config):
        pass

    def propose(self, asked): ...


def named(strategy: str, **keys: str) -> DesignConfig:
    return DesignConfig(strategy=strategy, **keys)


def test_the_configuration_knows_exactly_the_registered_strategies():
    assert set(registry.STRATEGIES) == set(IN_CONFIGURATION)


def test_a_registered_name_is_built_with_the_configuration():
    assert isinstance(registry.build(named("external", external=str(DEMO))), External)


def test_a_strategy_of_ones_own_is_built_by_module_and_class():
    built = registry.build(DesignConfig(strategy="tests.unit.test_registry:Nothing", seed=7))
    assert built.seed == 7


@pytest.mark.parametrize(
    "name", ["no_such_module:Strategy", "tests.unit.test_registry:NoSuchClass", ":", "promof_hpc:"]
)
def test_one_that_cannot_be_loaded_is_told_with_what_is_known(name: str):
    with pytest.raises(UsageError, match=r"Cannot load the strategy .* Known: promof, sample"):
        registry.build(named(name))


def test_a_class_that_is_no_strategy_is_told_what_it_lacks():
    with pytest.raises(UsageError, match="no method learn, save, load"):
        registry.build(named("tests.unit.test_registry:Half"))


def test_an_unknown_name_gets_the_nearest_as_a_hint():
    with pytest.raises(UsageError, match=r"Unknown strategy 'genetics' \(did you mean 'genetic'\?\)"):
        registry.build(DesignConfig.model_construct(strategy="genetics"))
