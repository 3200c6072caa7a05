"""robomimic-style HDF5 and LeRobot data sets: read as they were written, refused where they are wrong."""

import json

import numpy as np
import pytest

from envs.tasks.catalog import make_task
from envs.tasks.hierarchy import frame_layout
from rdp_jax.config import ConfigError
from rdp_jax.data.episodes import DataError
from rdp_jax.data.foreign import is_lerobot, load_foreign, load_robomimic
from train.pretrain import load_demonstrations
from train.task_args import PretrainArgs

LENGTHS = (5, 3, 4)


def robomimic(path, change=lambda demos: None):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    demos = {
        f"demo_{i}": {
            "actions": rng.normal(size=(n, 2)),
            "rewards": np.eye(n)[-1] * (i != 1),
            "obs/b": rng.normal(size=(n, 3)),
            "obs/a": rng.normal(size=(n, 1)),
            "obs/image": np.zeros((n, 4, 4, 3)),
        }
        for i, n in enumerate(LENGTHS)
    }
    demos["demo_10"] = demos.pop("demo_2")
    change(demos)
    with h5py.File(path, "w") as file:
        for name, demo in demos.items():
            for key, value in demo.items():
                file[f"data/{name}/{key}"] = value
    return demos


def test_robomimic_is_read_in_order(tmp_path):
    demos = robomimic(tmp_path / "low_dim.hdf5")
    found = load_foreign(tmp_path / "low_dim.hdf5")
    assert found.length.tolist() == list(LENGTHS) and found.success.tolist() == [True, False, True]
    np.testing.assert_allclose(
        found.obs[:5], np.concatenate([demos["demo_0"]["obs/a"], demos["demo_0"]["obs/b"]], 1), rtol=1e-6
    )
    np.testing.assert_allclose(found.action[-4:], demos["demo_10"]["actions"], rtol=1e-6)
    assert load_robomimic(tmp_path / "low_dim.hdf5", ["b"]).obs.shape == (12, 3)


def test_observations_are_joined_as_the_task_has_them(tmp_path):
    layout = frame_layout(make_task("pickup"))

    def named(demos):
        for demo in demos.values():
            n = len(demo["actions"])
            demo |= {f"obs/{key}": np.full((n, width), i) for i, (key, width) in enumerate(layout.items())}

    robomimic(tmp_path / "own.hdf5", named)
    robomimic(tmp_path / "others.hdf5")
    found = load_demonstrations(PretrainArgs(data=tmp_path / "own.hdf5"))
    assert found.obs[0].tolist() == [i for i, width in enumerate(layout.values()) for _ in range(width)]
    with pytest.raises(
        ConfigError, match=r"observations=None, allowed: some of a, b, in the order .* left_hand, right_hand"
    ):
        load_demonstrations(PretrainArgs(data=tmp_path / "others.hdf5"))
    chosen = PretrainArgs(data=tmp_path / "others.hdf5", observations=("b", "a"))
    assert load_demonstrations(chosen).obs.shape[1] == 4
    assert load_demonstrations(PretrainArgs(data=tmp_path / "others.hdf5", task="hopper")).obs.shape[1] == 4
    (tmp_path / "damaged.h5").write_text("no")
    with pytest.raises(DataError, match="no HDF5 file"):
        load_demonstrations(PretrainArgs(data=tmp_path / "damaged.h5"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["demo_1"].pop("actions"), r"episode demo_1, actions: missing"),
        (lambda d: d["demo_1"].pop("obs/a"), r"episode demo_1, obs/a: missing"),
        (
            lambda d: d["demo_0"].update({"obs/b": np.zeros((4, 3))}),
            r"episode demo_0, obs/b: shape \(4, 3\), expected \(5",
        ),
        (lambda d: d["demo_0"].update(actions=np.zeros(5)), r"episode demo_0, actions: shape \(5,\)"),
        (
            lambda d: d["demo_10"].update(actions=np.zeros((4, 3))),
            r"episode 2, action: shape \(4, 3\), expected \(4, 2\)",
        ),
        (lambda d: d["demo_0"]["actions"].__setitem__((2, 0), np.nan), r"episode 0, action, step 2: not finite"),
        (lambda d: d.clear(), r"no group data/"),
        (
            lambda d: d["demo_0"].update(actions=np.array([b"left"] * 5)),
            r"episode demo_0, actions: not an array of numbers",
        ),
    ],
)
def test_bad_robomimic_files_are_refused(change, said, tmp_path):
    robomimic(tmp_path / "bad.hdf5", change)
    with pytest.raises(DataError, match=said):
        load_foreign(tmp_path / "bad.hdf5")


@pytest.mark.parametrize(
    "error", [KeyError("message not aligned"), RuntimeError("bad heap"), OSError("wrong checksum")]
)
def test_a_damaged_robomimic_file_is_refused(error, tmp_path, monkeypatch):
    """h5py finds some damage only where it is read, and says so in many ways."""
    robomimic(tmp_path / "bad.hdf5", lambda d: None)

    def broken(*_):
        raise error

    monkeypatch.setattr("h5py.Dataset.__array__", broken)
    with pytest.raises(DataError, match=f"bad.hdf5: .*{error.args[0]}"):
        load_robomimic(tmp_path / "bad.hdf5")
    monkeypatch.setattr("h5py.Group.__getitem__", broken)
    with pytest.raises(DataError, match=f"bad.hdf5: a damaged HDF5 file: .*{error.args[0]}"):
        load_robomimic(tmp_path / "bad.hdf5")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"data": 3}, "no group data/ with episodes in it"),
        ({"data/demo_0": 3}, "episode demo_0, data/demo_0: no group"),
        ({"data/demo_0/obs": 3}, "episode demo_0, data/demo_0/obs: no group"),
        ({"data/demo_0/actions": 3}, "episode demo_0, data/demo_0/obs: no group"),
        ({"data/demo_0/obs/left/a": 3}, r"episode demo_0, obs: no one-dimensional observation among \['left'\]"),
    ],
)
def test_arrays_where_groups_should_be_are_refused(arrays, said, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "flat.hdf5"
    with h5py.File(path, "w") as file:
        for name, width in arrays.items():
            file[name] = np.zeros((5, width))
    with pytest.raises(DataError, match=f"{path}: {said}"):
        load_foreign(path)


def lerobot(path, rows=None, features=None):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (path / "meta").mkdir(parents=True)
    shapes = features or {"observation.state": {"shape": [3], "names": ["x", "y", "z"]}, "action": {"shape": [2]}}
    (path / "meta" / "info.json").write_text(json.dumps({"fps": 10, "codebase_version": "v2.1", "features": shapes}))
    rng = np.random.default_rng(0)
    for i, n in enumerate(LENGTHS):
        columns = {
            "episode_index": [i] * n,
            "frame_index": list(range(n))[::-1],  # files need not be in order
            "observation.state": rng.normal(size=(n, 3)).tolist(),
            "action": rng.normal(size=(n, 2)).tolist(),
        }
        if rows:
            rows(i, columns)
        folder = path / "data" / "chunk-000"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"episode_{i:06d}.parquet")
    return path


def test_lerobot_is_read_in_order(tmp_path):
    kept = {}
    path = lerobot(tmp_path / "set", lambda i, columns: kept.update({i: dict(columns)}))
    assert is_lerobot(path) and not is_lerobot(tmp_path)
    found = load_foreign(path)
    assert found.length.tolist() == list(LENGTHS) and found.success.all()
    np.testing.assert_allclose(found.obs[0], kept[0]["observation.state"][-1], rtol=1e-6)
    np.testing.assert_allclose(found.action[-1], kept[2]["action"][0], rtol=1e-6)
    assert found.metadata["observations"] == ["x", "y", "z"]


def test_bad_lerobot_sets_are_refused(tmp_path):
    def short(i, columns):
        if i == 1:
            columns["action"] = [[0.0]] * LENGTHS[1]

    with pytest.raises(DataError, match="episode 1, action, step 0: 1 numbers, expected 2"):
        load_foreign(lerobot(tmp_path / "a", short))
    with pytest.raises(DataError, match=r"feature action: missing among \['observation.state'\]"):
        load_foreign(lerobot(tmp_path / "b", features={"observation.state": {"shape": [3]}}))
    empty = tmp_path / "c" / "meta"
    empty.mkdir(parents=True)
    (empty / "info.json").write_text("{}")
    with pytest.raises(DataError, match="info.json: cannot be read"):
        load_foreign(tmp_path / "c")


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([], r"feature observation.state: missing among \[\]"),
        (3, "cannot be read"),
        ({"observation.state": {}, "action": {"shape": [2]}}, "feature observation.state: shape None, expected a list"),
        ({"observation.state": {"shape": [3]}, "action": {"shape": "2"}}, "feature action: shape '2', expected a list"),
        (
            {"observation.state": [3], "action": {"shape": [2]}},
            "feature observation.state: shape None, expected a list",
        ),
    ],
)
def test_features_that_say_no_shape_are_refused(features, said, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"features": features}))
    with pytest.raises(DataError, match=f"{tmp_path / 'meta' / 'info.json'}: {said}"):
        load_foreign(tmp_path)


def test_lerobot_tables_without_rows_or_numbers_are_refused(tmp_path):
    def empty(i, columns):
        columns.update({name: [] for name in columns})

    def nameless(i, columns):
        columns["episode_index"] = [None] * LENGTHS[i]

    def wordy(i, columns):
        columns["action"] = [["left", "right"]] * LENGTHS[i]

    for name, change, said in (
        ("empty", empty, "data: no episodes, expected at least one"),
        ("nameless", nameless, "episode_000000.parquet: cannot be read: TypeError"),
        ("wordy", wordy, "episode 0, action: no numbers"),
    ):
        with pytest.raises(DataError, match=f"{tmp_path / name}.*{said}"):
            load_foreign(lerobot(tmp_path / name, change))
