"""What README and docs show can be typed, and what they point at is there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from train import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Logs have commands as they were typed, at commits of their own; here is what is to be typed today.
GUIDES = ("README", "benchmarks", "commands", "deploy", "gym", "planner", "tasks")
STAND_INS = {"TASK": "pickup", "E": "40", "SEED": "7", "DEMOS": "demos", "RUN": "run", "OUT": "out"}


def blocks(page):
    return re.findall(r"^```\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shown():
    """`page: command` of every line of a guide that begins like a command."""
    found = []
    for page in PAGES:
        if page.stem in GUIDES:
            lines = [line.split("  #")[0].strip() for block in blocks(page) for line in block.splitlines()]
            found += [(page.stem, line) for line in lines if re.match(r"rdp [a-z]+( |$)", line)]
    return found


def test_guides_show_commands():
    assert {page for page, _ in shown()} == {*GUIDES} - {"commands"}
    assert sum(page == "README" for page, _ in shown()) >= 10


@pytest.mark.parametrize(("page", "line"), shown())
def test_commands_that_are_shown_parse(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [STAND_INS.get(word, word) for word in shlex.split(line)[1:]]
    flags = dict(itertools.pairwise(words))
    if "--resume" in words:
        Path(flags["--out"]).mkdir(parents=True)
    for flag in ("--data", "--planner", "--run"):
        if flag in flags:
            path = Path(flags[flag])
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            (path if path.suffix else path / "planner.safetensors").touch()
    command, rest = cli._find(words)
    cli.parse(command, cli._load(command.args), rest)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "commands.md"], ids=lambda page: page.stem)
def test_tables_of_commands_have_all_that_exist(page):
    told = re.findall(r"^\| `rdp ([a-z]+(?: [a-z]+)?)", page.read_text(), flags=re.MULTILINE)
    assert sorted(told) == sorted(command.name for command in cli.COMMANDS)


def anchors(page):
    """Of its headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    """Paths below the rooms, without patterns and placeholders."""
    rooms = r"`((?:rdp_jax|envs|train|benchmarks|tests|docs)/[\w./-]+\.\w+)`"
    for name in re.findall(rooms, page.read_text()):
        assert (ROOT / name).exists(), name
