"""Results files: one entry a command, machine beside them, nothing kept of a command that failed."""

import json

from benchmarks import record


def test_a_summary_is_kept_under_its_command(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert record.main([str(path), "reproduce", "gym", "--task", "hopper", "--list"]) == 0
    kept = json.loads(path.read_text())
    entry = kept["commands"]["rdp reproduce gym --task hopper --list"]
    assert entry["machine"]["cores"] >= 1  # its own: others may have been kept elsewhere
    assert entry["command"] == "reproduce gym" and entry["metrics"]["commands"]
    record.keep(path, ["other"], {"metrics": {}})
    assert set(json.loads(path.read_text())["commands"]) == {"rdp reproduce gym --task hopper --list", "rdp other"}
    assert json.loads(capsys.readouterr().out) == entry["metrics"]


def test_a_command_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "results.json"
    assert record.main([str(path), "reproduce", "gym", "--task", "pickup"]) == 2
    assert not path.exists()
    assert record.main([str(path)]) == 2
