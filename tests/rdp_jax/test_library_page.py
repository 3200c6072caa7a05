"""`docs/library.md` is a program, and does what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def test_the_page_runs_and_what_learns_becomes_better():
    program: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), program)
    before, after, steered = (program[name] for name in ("before", "after", "steered"))
    assert 0.1 < before < 0.6  # there is something to learn, and something to learn from
    assert min(after, steered) > before + 0.25
