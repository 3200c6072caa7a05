"""Wrong values are refused with field, value and what is allowed."""

import dataclasses
import math

import pytest

from rdp_jax import config
from rdp_jax.algos import dppo, ppo
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
    ("frozen_statistics", "no", "true | false"),
    ("frozen_statistics", 0, "true | false"),
]


def test_a_rate_is_not_adapted_to_a_kl_that_nobody_sees():
    """It is seen before each step: with one step an iteration it is zero."""
    with pytest.raises(
        ConfigError, match=r"lr_min=0\.0001, allowed: lr_max=0\.003 where an iteration is one gradient step"
    ):
        config.validate(ppo.PPOConfig(epochs=1, minibatches=1))
    config.validate(ppo.PPOConfig(epochs=1, minibatches=1, lr=1e-3, lr_min=1e-3, lr_max=1e-3))
    one = dppo.DPPOConfig(epochs=1, minibatches=1)
    config.validate(one)
    with pytest.raises(ConfigError, match=r"kl_goal=0\.1, allowed: 0 where"):
        config.validate(dataclasses.replace(one, kl_goal=0.1))
    with pytest.raises(ConfigError, match=r"actor_lr=0\.0, allowed: more than 0 where kl_goal=0\.1 adapts it"):
        config.validate(dppo.DPPOConfig(kl_goal=0.1, actor_lr=0.0))


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
