"""Arguments of `rdp bench`.  Loads neither JAX nor a simulator."""

from __future__ import annotations

import dataclasses

from benchmarks.scenarios import SCENARIOS
from rdp_jax.config import ConfigError
from train.args import Common, appended, optional, word


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchArgs(Common):
    """Run a benchmark scenario."""

    name: str = word(tuple(SCENARIOS), "scenario")
    repeats: int | None = optional(1, 10**6, "timed calls per case; left out: the scenario's own choice")
    set: tuple[str, ...] = appended("settings of the scenario to change, as KEY=VALUE")

    def check(self) -> None:
        super().check()
        if self.out is not None and (self.out / f"{self.name}.json").exists():
            raise ConfigError("out", str(self.out), f"a directory without a {self.name}.json: nothing is overwritten")
