"""Episode files and windows: round trips, and every refusal."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from rdp_jax.data import windows as W

LENGTHS = (5, 3, 8)


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    return E.from_lists(
        [rng.normal(size=(n, 4)) for n in LENGTHS],
        [rng.normal(size=(n, 2)) for n in LENGTHS],
        [np.eye(1, n, n - 1)[0] for n in LENGTHS],
        [True, False, True],
        [7, 8, 9],
        {"qpos": [rng.normal(size=(n, 3)) for n in LENGTHS]},
        {"task": "toy"},
    )


def test_a_file_gives_back_what_was_saved(episodes, tmp_path):
    path = tmp_path / "deep" / "e.safetensors"
    E.save(path, episodes)
    again = E.load(path)
    for name in ("obs", "action", "reward", "length", "success", "seed"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episodes, name))
    np.testing.assert_array_equal(again.extras["qpos"], episodes.extras["qpos"])
    assert again.metadata["task"] == "toy"
    with pytest.raises(E.DataError, match="exists"):
        E.save(path, episodes)


def test_take_and_concatenate_are_inverse(episodes):
    parts = [E.take(episodes, [i]) for i in range(3)]
    np.testing.assert_array_equal(parts[1].obs, episodes.obs[5:8])
    again = E.concatenate(parts)
    np.testing.assert_array_equal(again.obs, episodes.obs)
    np.testing.assert_array_equal(again.starts, [0, 5, 8])
    assert E.summary(again) == {
        "episodes": 3,
        "steps": 16,
        "mean_length": pytest.approx(16 / 3),
        "mean_return": 1.0,
        "success_rate": pytest.approx(2 / 3),
    }


def test_bad_data_is_refused_by_name(episodes, tmp_path):
    obs = episodes.obs.copy()
    obs[6, 1] = np.nan
    with pytest.raises(E.DataError, match="episode 1, obs, step 1"):
        E.validate(dataclasses.replace(episodes, obs=obs))
    with pytest.raises(E.DataError, match=r"action has shape \(15, 2\), expected \(16, width\)"):
        E.validate(dataclasses.replace(episodes, action=episodes.action[:-1]))
    with pytest.raises(E.DataError, match="episode 1, action: shape"):
        E.from_lists([np.zeros((2, 1))] * 2, [np.zeros((2, 1)), np.zeros((3, 1))], [np.zeros(2)] * 2, [1, 1], [0, 1])
    with pytest.raises(E.DataError, match="no episodes"):
        E.from_lists([], [], [], [], [])
    with pytest.raises(E.DataError, match="cannot be read"):
        E.load(tmp_path / "missing.safetensors")
    E.save(tmp_path / "whole.safetensors", episodes)
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:200])
    with pytest.raises(E.DataError, match="cannot be read"):
        E.load(tmp_path / "half.safetensors")
    save_file({"obs": episodes.obs}, tmp_path / "other.safetensors", metadata={"json": '{"format": 9}'})
    with pytest.raises(E.DataError, match="format 9, expected 1"):
        E.load(tmp_path / "other.safetensors")
    save_file({"obs": episodes.obs}, tmp_path / "list.safetensors", metadata={"json": "[1]"})
    with pytest.raises(E.DataError, match="format None, expected 1"):
        E.load(tmp_path / "list.safetensors")
    save_file({"obs": episodes.obs}, tmp_path / "part.safetensors", metadata={"json": '{"format": 1}'})
    with pytest.raises(E.DataError, match="no array 'action'"):
        E.load(tmp_path / "part.safetensors")


@pytest.mark.parametrize(("pad", "count"), [("repeat", 16), ("none", 3 + 1 + 6)])
def test_windows_never_cross_an_episode(episodes, pad, count):
    table = W.windows(episodes, history=3, horizon=3, pad_end=pad)
    assert len(table) == count
    owner = np.repeat(np.arange(3), LENGTHS)
    rows = np.concatenate([table.obs, table.action], axis=1)
    assert (owner[rows] == owner[rows[:, :1]]).all()
    # The newest frame is that of the first action; frames and actions are consecutive where not padded.
    np.testing.assert_array_equal(table.obs[:, -1], table.action[:, 0])
    assert (np.diff(rows, axis=1) <= 1).all() and (np.diff(rows, axis=1) >= 0).all()


def test_gathered_windows_are_the_episodes_rows(episodes):
    table = W.windows(episodes, history=2, horizon=2, only=np.array([2]))
    obs, chunk = W.gather(jnp.asarray(episodes.obs), jnp.asarray(episodes.action), table)
    np.testing.assert_array_equal(obs[0], np.concatenate([episodes.obs[8], episodes.obs[8]]))
    np.testing.assert_array_equal(obs[3], np.concatenate([episodes.obs[10], episodes.obs[11]]))
    np.testing.assert_array_equal(chunk[-1], np.stack([episodes.action[15], episodes.action[15]]))


def test_windows_refuse_what_cannot_be(episodes):
    with pytest.raises(E.DataError, match="no episode has 9 steps"):
        W.windows(episodes, 1, 9, "none")
    with pytest.raises(ConfigError, match="pad_end"):
        W.windows(episodes, 1, 2, "reflect")


def test_bounds_normalise_to_the_unit_box_and_back():
    x = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32) * [1.0, 100.0, 0.0] + [0, 5, 2]
    bounds = W.bounds(x.astype(np.float32))
    n = np.asarray(bounds.normalize(jnp.asarray(x, jnp.float32)))
    assert np.abs(n).max() <= 1.0 and np.abs(n[:, 0]).max() > 0.999
    np.testing.assert_allclose(n[:, 2], 0.0, atol=1e-6)  # a constant column
    np.testing.assert_allclose(bounds.unnormalize(jnp.asarray(n)), x, rtol=1e-4, atol=1e-4)
    assert bounds.tile(3).lo.shape == (9,)


def test_split_keeps_episodes_apart(episodes):
    train, validation = W.split(episodes, 0.34, seed=0)
    assert sorted([*train, *validation]) == [0, 1, 2] and len(validation) == 1
    assert len(W.split(episodes, 0.9, seed=0)[0]) >= 1
