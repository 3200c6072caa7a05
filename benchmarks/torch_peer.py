"""The same network, sampler and loss in eager PyTorch, as DPPO's own code would run them: the peer of `benchmarks.diffusion`."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from rdp_jax.algos.dppo import Batch, DPPOConfig, clip_schedule
from rdp_jax.diffusion.policy import DiffusionPolicy
from rdp_jax.diffusion.schedule import Table


def linear(layer: Any) -> nn.Linear:
    """A flax `Dense` as a torch `Linear`."""
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    out = nn.Linear(*kernel.shape)
    with torch.no_grad():
        out.weight.copy_(torch.from_numpy(kernel.T.copy()))
        out.bias.copy_(torch.from_numpy(bias.copy()))
    return out


class Denoiser(nn.Module):
    """`rdp_jax.nets.denoiser.DenoiserMLP` with the parameters of a flax one."""

    def __init__(self, params: Any, time_dim: int = 16):
        super().__init__()
        half = time_dim // 2
        self.frequency = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half))
        self.hidden, self.out = linear(params["time"]["hidden"]), linear(params["time"]["out"])
        trunk = {name: linear(layer["dense"]) for name, layer in params["trunk"].items()}
        self.trunk = nn.ModuleDict(trunk)

    def forward(self, x: torch.Tensor, t: torch.Tensor, obs: torch.Tensor) -> torch.Tensor:
        """`x (B, Ta, Da)`, `t (B,)`, `obs (B, Do)` -> `(B, Ta, Da)`."""
        angle = t.float()[:, None] * self.frequency
        time = self.out(nn.functional.mish(self.hidden(torch.cat([angle.sin(), angle.cos()], -1))))
        h = self.trunk["first"](torch.cat([x.flatten(1), time, obs], -1))
        h = h + self.trunk["block_0_b"](torch.relu(self.trunk["block_0_a"](torch.relu(h))))
        return self.trunk["last"](h).view_as(x)


class Critic(nn.Module):
    """`rdp_jax.nets.denoiser.ResidualCritic`, freshly initialised."""

    def __init__(self, obs_dim: int, width: int = 256):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(obs_dim, width), nn.Linear(width, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """`(B, Do)` -> `(B,)`."""
        h = self.first(obs)
        h = h + self.b(nn.functional.mish(self.a(nn.functional.mish(h))))
        return self.last(h)[:, 0]


def table_of(table: Table) -> dict[str, torch.Tensor]:
    """A table of reverse steps as tensors `(S,)`."""
    names = ("t", "recip", "recip_m1", "p", "q", "std")
    return {name: torch.from_numpy(np.asarray(getattr(table, name)).copy()) for name in names}


def next_mean(net: Denoiser, x: torch.Tensor, obs: torch.Tensor, step: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of the next sample; each entry of `step` is `(B,)`."""
    eps = net(x, step["t"], obs)
    r, m, p, q = (step[name][:, None, None] for name in ("recip", "recip_m1", "p", "q"))
    return p * (r * x - m * eps).clamp(-1.0, 1.0) + q * x


class Chain:
    """Sampling of whole chains."""

    def __init__(self, policy: DiffusionPolicy, params: Any, count: int, obs_dim: int, tuned: int):
        self.base, self.tuned = Denoiser(params), Denoiser(params)
        self.table, self.count, self.shape = table_of(policy.exploring), count, policy.shape
        self.first = len(policy.exploring) - tuned
        self.obs = torch.from_numpy(np.random.default_rng(0).normal(size=(count, obs_dim)).astype(np.float32))

    @torch.no_grad()
    def sample(self) -> torch.Tensor:
        """All steps, the chain kept."""
        x, chain = torch.randn(self.count, *self.shape), []
        for i in range(len(self.table["t"])):
            step = {name: value[i].expand(self.count) for name, value in self.table.items()}
            net = self.base if i < self.first else self.tuned
            if i == self.first:
                chain.append(x)
            noise = torch.randn_like(x).clamp_(-3.0, 3.0)
            x = next_mean(net, x, self.obs, step) + step["std"][:, None, None] * noise
            if i >= self.first:
                chain.append(x)
        return torch.stack(chain, 1)


class Learner:
    """One gradient step of actor and critic."""

    def __init__(self, policy: DiffusionPolicy, params: Any, config: DPPOConfig, batch: Batch, tuned: int):
        self.config, self.tuned = config, tuned
        self.actor, self.critic = Denoiser(params), Critic(batch.critic_obs.shape[-1])
        self.table = {name: value[-tuned:] for name, value in table_of(policy.exploring).items()}
        self.clip = torch.from_numpy(np.asarray(clip_schedule(config)).copy())
        flat = jax.tree.map(lambda x: torch.from_numpy(np.asarray(x).reshape(-1, *x.shape[2:]).copy()), batch)
        self.batch = flat
        self.optimizers = [
            torch.optim.Adam(self.actor.parameters(), config.actor_lr),
            torch.optim.Adam(self.critic.parameters(), config.critic_lr),
        ]

    def step(self) -> float:
        """Shuffle, loss, backward, Adam."""
        config, batch = self.config, self.batch
        index = torch.randperm(batch.target.shape[0] * self.tuned)
        outer, inner = index // self.tuned, index % self.tuned
        x, x_next = batch.chain[outer, inner], batch.chain[outer, inner + 1]
        step = {name: value[inner] for name, value in self.table.items()}
        mean, std = next_mean(self.actor, x, batch.obs[outer], step), step["std"][:, None, None]
        elements = -0.5 * ((x_next - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2.0 * math.pi)
        new = elements.clamp(config.log_prob_min, config.log_prob_max).mean((1, 2))
        advantage = batch.advantage[outer]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        advantage = advantage * config.gamma_denoising ** (self.tuned - 1 - inner).float()
        ratio = torch.exp((new - batch.log_prob[outer, inner]).clamp(-20.0, 20.0))
        clip = self.clip[inner]
        policy = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()
        value = 0.5 * (self.critic(batch.critic_obs[outer]) - batch.target[outer]).square().mean()
        loss = policy + config.value_coef * value
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())
