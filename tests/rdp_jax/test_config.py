"""Wrong values are refused with field, value and what is allowed."""

import dataclasses
import math

import pytest

from rdp_jax import config
from rdp_jax.algos import ppo
from rdp_jax.config import ConfigError

BAD = [
    ("gamma", 1.5, "0.0 .. 1.0"),
    ("clip", math.nan, "finite"),
    ("lr", math.inf, "finite"),
    ("epochs", 2.5, "integer"),
    ("epochs", True, "number"),
    ("num_envs", 0, "1 .. "),
    ("num_envs", 30, "multiple of shuffle_groups=4"),
    ("minibatches", 3, "divisor of 2048"),
    ("lr", 0.5, "lr_min .. lr_max"),
    ("init_std", 5.0, "min_std .. max_std"),
    ("actor_sizes", (), "non-empty"),
    ("actor_sizes", (64, 0), "1 .. "),
    ("matmul_precision", "float8", "highest"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_refused(field, value, allowed):
    with pytest.raises(ConfigError) as error:
        config.validate(dataclasses.replace(ppo.PPOConfig(), **{field: value}))
    assert error.value.field == field
    assert allowed in error.value.allowed
    assert str(error.value).startswith(f"{field}=")


def test_round_trip():
    original = ppo.PPOConfig(actor_sizes=(8, 4), gamma=0.9)
    assert config.from_dict(ppo.PPOConfig, config.to_dict(original)) == original


def test_unknown_field():
    with pytest.raises(ConfigError, match="gama"):
        config.from_dict(ppo.PPOConfig, {"gama": 0.9})


def test_difference_names_the_field():
    ours, theirs = {"a": 1, "b": {"c": [1, 2], "d": 3}}, {"a": 1, "b": {"c": [1, 2], "d": 4}}
    assert config.difference(ours, theirs) == ("b.d", 3, 4)
    assert config.difference(ours, ours) is None
    assert config.difference({"a": 1}, {"a": 1, "e": 2}) == ("e", None, 2)
