"""Gymnasium's planar robots; see `envs.gym.locomotion`."""

from functools import partial

from envs.gym.locomotion import Locomotion

hopper, walker2d, halfcheetah = (partial(Locomotion, name) for name in ("hopper", "walker2d", "halfcheetah"))
