"""Figures of runs: a planner's run has its returns in it, a controller's its errors."""

import json

from train import curves


def write_run(path, config, rows):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"config": config, "git": "abc", "versions": {}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_planner_runs_beside_the_reruns(tmp_path):
    rows = [
        {"iteration": i, "time/iteration_s": 2.0, "episode/return": 100.0 * i}
        | ({"eval/return": 7.0} if i == 2 else {})
        for i in (1, 2, 3)
    ]
    runs = [write_run(tmp_path / f"run{seed}", {"seed": seed, "task": "hopper"}, rows) for seed in (0, 1)]
    (runs[1] / "summary.json").write_text(json.dumps({"metrics": {"return_before": 5.0}}))
    assert curves.main([str(tmp_path / "figure"), *map(str, runs)]) == 0
    found = json.loads((tmp_path / "figure.json").read_text())["curves"]
    assert found[1]["points"][0] == {"iteration": 0, "seconds": 0.0, "return_exploring": None, "return": 5.0}
    assert [curve["seed"] for curve in found] == [0, 1] and found[0]["task"] == "hopper"
    assert found[0]["points"][1] == {"iteration": 2, "seconds": 4.0, "return_exploring": 200.0, "return": 7.0}
    assert found[0]["points"][2]["return"] is None
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(f"<!-- {label} -->" in drawn for label in ("seed 0, 0 min", "seed 1, 0 min", "a third party's DPPO"))


def test_controller_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "progress_metrics", lambda sums: dict.fromkeys(curves.PANELS["legs"], sums["env/x"]))
    config = {"seed": 3, "part": "legs", "ppo": {"num_envs": 4, "unroll_length": 8}}
    rows = [{"iteration": i, "time/iteration_s": 1.0, "reward/mean": 0.5, "env/x": 0.1 * i} for i in range(1, 301)]
    run = write_run(tmp_path / "run", config, rows)
    assert curves.main([str(tmp_path / "figure"), str(run)]) == 0
    (found,) = json.loads((tmp_path / "figure.json").read_text())["curves"]
    assert len(found["points"]) == curves.POINTS and found["part"] == "legs"
    assert found["points"][-1]["env_steps"] == 300 * 32 and found["points"][-1]["seconds"] == 300.0
    assert (tmp_path / "figure.svg").is_file()
