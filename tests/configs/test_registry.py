"""Names -> classes."""

from __future__ import annotations

import pytest

from configs.errors import ConfigError
from configs.registry import Registry


@pytest.fixture
def things() -> Registry[type]:
    registry: Registry[type] = Registry("thing")
    registry.add("hammer")(int)
    registry.add("nail")(str)
    return registry


def test_look_up_and_listing(things: Registry[type]) -> None:
    assert things["hammer"] is int
    assert list(things) == ["hammer", "nail"]
    assert len(things) == 2


def test_an_unknown_name_gets_the_nearest(things: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"no thing 'hamer'. Did you mean 'hammer'\? Known: hammer, nail"):
        things["hamer"]


def test_a_name_is_taken_once(things: Registry[type]) -> None:
    with pytest.raises(ValueError, match="registered twice"):
        things.add("nail")(float)
