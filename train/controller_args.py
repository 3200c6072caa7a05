"""Arguments of `rdp controller train`.  Apart from `train.args` because the learner's config loads JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rdp_jax.algos.ppo import PPOConfig
from rdp_jax.config import chosen, ranged
from train.args import SCENES, Resumable, input_file, optional

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {"num_envs": 4096, "minibatches": 8, "reset_pool": 1024},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArgs(Resumable):
    """Train a part of the low-level controller by PPO on its tracking reward."""

    part: str = chosen("legs", ("legs", "hands"), "what to train: footsteps or hand poses")
    iterations: int = ranged(2000, 1, 10**9, "PPO iterations")
    minutes: float | None = optional(0.01, 1e5, "stop after this much wall clock even if iterations are left", "min")
    scene: str = chosen("flat", SCENES, "ground; platforms is flat ground with three platforms to step on")
    physics_dt: float = ranged(0.01, 0.002, 0.01, "physics step: 0.002, 0.004, 0.005 or 0.01", "s")
    init: Path | None = input_file("weights of this part (.safetensors) to start from; left out: from scratch")
    # Hands cannot do without legs, while arms follow their references well enough for the legs to learn under them.
    partner: Path | None = input_file("weights of the other part (.safetensors); left out: legs shipped, hands none")
    # Its num_envs is --num-envs.
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig, metadata={"hidden": ("num_envs",)})

    @classmethod
    def defaults(cls, preset: str) -> TrainArgs:
        """What `--preset` stands for."""
        ppo = PPOConfig(**PRESETS[preset])
        return cls(preset=preset, num_envs=ppo.num_envs, ppo=ppo)

    def resolved(self) -> TrainArgs:
        """These arguments with `ppo.num_envs` equal to `num_envs`."""
        if self.num_envs is None:
            return dataclasses.replace(self, num_envs=self.ppo.num_envs)
        return dataclasses.replace(self, ppo=dataclasses.replace(self.ppo, num_envs=self.num_envs))
