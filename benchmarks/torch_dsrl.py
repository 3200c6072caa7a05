"""DSRL's networks and losses in eager PyTorch, as its released code would run them: the peer of `benchmarks.dsrl`."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from benchmarks.torch_peer import Denoiser, linear, next_mean, table_of
from rdp_jax.algos.dsrl import DSRLConfig, LearnerState, Row, noise_dim
from rdp_jax.nets.squashed import LOG_STD_MAX, LOG_STD_MIN
from rdp_jax.steer import PlannerBase

LOG_2PI = math.log(2.0 * math.pi)


def tensors(tree: Any) -> Any:
    """Arrays -> tensors that own their memory."""
    return jax.tree.map(lambda x: torch.from_numpy(np.asarray(x).copy()), tree)


def _norm(layer: Any) -> nn.LayerNorm:
    """A flax `LayerNorm` as a torch one."""
    out = nn.LayerNorm(len(layer["scale"]), eps=1e-6)
    with torch.no_grad():
        out.weight.copy_(tensors(layer["scale"]))
        out.bias.copy_(tensors(layer["bias"]))
    return out


class NormMLP(nn.Module):
    """`rdp_jax.nets.squashed.NormMLP` with the parameters of a flax one."""

    def __init__(self, params: Any):
        super().__init__()
        depth = sum(name.startswith("layer_") for name in params)
        self.layers = nn.ModuleList(linear(params[f"layer_{i}"]) for i in range(depth))
        self.norms = nn.ModuleList(_norm(params[f"norm_{i}"]) for i in range(depth))
        self.last = linear(params["last"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, in)` -> `(B, out)`."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.tanh(norm(layer(x)))
        return self.last(x)


class Actor(nn.Module):
    """`SquashedActor` and `squash` in one."""

    def __init__(self, params: Any, init_std: float):
        super().__init__()
        self.trunk, self.offset = NormMLP(params["trunk"]), math.log(init_std)

    def forward(self, seen: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`seen (B, D)`, standard normal `noise (B, n)` -> `u (B, n)` in the box, its log-density `(B,)`."""
        mean, log_std = self.trunk(seen).chunk(2, -1)
        log_std = (log_std + self.offset).clamp(LOG_STD_MIN, LOG_STD_MAX)
        raw = mean + log_std.exp() * noise
        stretch = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
        return raw.tanh(), (-0.5 * noise.square() - log_std - 0.5 * LOG_2PI - stretch).sum(-1)


class Values(nn.Module):
    """`rdp_jax.nets.squashed.Values` with the parameters of a flax one."""

    def __init__(self, params: Any):
        super().__init__()
        heads = len(params["heads"]["last"]["bias"])
        each = [jax.tree.map(lambda x, h=h: np.asarray(x)[h], params["heads"]) for h in range(heads)]
        self.heads = nn.ModuleList(NormMLP(params) for params in each)

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """`(B, Do)`, `(B, n)` -> `(heads, B)`."""
        x = torch.cat([obs, action], -1)
        return torch.stack([head(x)[:, 0] for head in self.heads])


class Base:
    """The frozen policy: DDIM from the noise to the chunk."""

    def __init__(self, policy: PlannerBase, bundle: Any):
        self.net, self.table = Denoiser(bundle.weights), table_of(policy.policy.evaluating)
        self.lo, self.hi = tensors((bundle.obs.lo, bundle.obs.hi))
        self.executed = policy.config.executed

    def see(self, obs: torch.Tensor) -> torch.Tensor:
        """The normalised observation."""
        return 2.0 * (obs - self.lo) / (self.hi - self.lo + 1e-6) - 1.0

    @torch.no_grad()
    def sample(self, obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Raw `obs (B, Do)`, `noise (B, Ta, Da)` -> normalised chunk `(B, Te * Da)`."""
        seen, x = self.see(obs), noise
        for i in range(len(self.table["t"])):
            step = {name: value[i].expand(len(x)) for name, value in self.table.items()}
            x = next_mean(self.net, x, seen, step)
        return x[:, : self.executed].flatten(1)


class Learner:
    """N steps of temperature, critic and actor, then M of distillation, on a replay buffer in memory.

    Args:
      config: settings; `entropy_backup` and `reduce` as their defaults are.
      policy, state: what is steered, and the learner whose weights and rows it starts from.  Rows must be stored as the critics
        see them: this peer is spared their normalisation.
    """

    def __init__(self, config: DSRLConfig, policy: PlannerBase, state: LearnerState):
        params = jax.device_get(state.params)
        self.config, self.base = config, Base(policy, jax.device_get(state.base))
        self.shape, self.n = policy.noise_shape, noise_dim(config, policy)
        self.nets: dict[str, Any] = {
            "actor": Actor(params["actor"], config.init_std),
            "noise_values": Values(params["noise_values"]),
        }
        if config.variant == "na":
            self.nets["values"] = Values(params["values"])
        self.learned = "values" if config.variant == "na" else "noise_values"
        self.target = copy.deepcopy(self.nets[self.learned])
        self.alpha = nn.Parameter(tensors(params["alpha"]))
        rates = {"actor": config.actor_lr, "values": config.critic_lr, "noise_values": config.critic_lr}
        self.optimizers = {name: torch.optim.Adam(net.parameters(), rates[name]) for name, net in self.nets.items()}
        self.optimizers["alpha"] = torch.optim.Adam([self.alpha], config.alpha_lr)
        self.rows = tensors(state.buffer.rows)

    def __call__(self) -> float:
        """One iteration's learning."""
        count, loss = self.config.batch, 0.0
        for _ in range(self.config.updates):
            noise, next_noise = torch.randn(2, count, self.n)
            loss = self.update(self.draw(), noise, next_noise)["loss/critic"]
        if self.config.variant == "na":
            for _ in range(self.config.distillations):
                noise = torch.randn(count, self.n) if self.config.distill_from == "normal" else None
                loss = self.distill(self.draw(), noise)
        return loss

    def draw(self) -> Any:
        """A batch, uniformly with replacement."""
        index = torch.randint(len(self.rows.reward), (self.config.batch,))
        return Row(**{f.name: getattr(self.rows, f.name)[index] for f in dataclasses.fields(Row)})

    def denoised(self, obs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """`u (B, n)` in the box -> chunk `(B, Te * Da)`."""
        w = self.config.noise_bound * u
        noise = w[:, None].expand(-1, *self.shape) if self.config.repeats else w.view(-1, *self.shape)
        return self.base.sample(obs, noise)

    def update(self, batch: Any, noise: torch.Tensor, next_noise: torch.Tensor) -> dict[str, float]:
        """One step of temperature, critic and actor with the given noise `(B, n)`; its losses."""
        config, critic = self.config, self.nets[self.learned]
        alpha = self.alpha.exp().detach()
        with torch.no_grad():
            u_next, _ = self.nets["actor"](self.base.see(batch.next_actor_obs), next_noise)
            action = self.denoised(batch.next_actor_obs, u_next) if config.variant == "na" else u_next
            goal = batch.reward + batch.discount * self.target(batch.next_critic_obs, action).amin(0)
        values = critic(batch.critic_obs, batch.chunk if config.variant == "na" else batch.u)
        critic_loss = 0.5 * (values - goal).square().mean(1).sum()
        u, log_prob = self.nets["actor"](self.base.see(batch.actor_obs), noise)
        actor_loss = (alpha * log_prob - self.nets["noise_values"](batch.critic_obs, u).amin(0)).mean()
        surplus = log_prob.detach().mean() + config.target_entropy * self.n
        # All gradients before any step.
        gradients = {
            self.learned: self._gradient(self.learned, critic_loss),
            "actor": self._gradient("actor", actor_loss),
        }
        self.alpha.grad = -surplus / self.n
        for name, gradient in gradients.items():
            self._step(name, gradient)
        nn.utils.clip_grad_norm_([self.alpha], config.max_grad_norm)
        self.optimizers["alpha"].step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), critic.parameters(), strict=True):
                old.lerp_(new, config.tau)
        return {
            "loss/critic": float(critic_loss.detach()),
            "loss/actor": float(actor_loss.detach()),
            "policy/entropy": float(-log_prob.detach().mean() / self.n),
            "policy/alpha": float(alpha),
            "value/mean": float(values.detach().mean()),
            "value/target": float(goal.mean()),
        }

    def distill(self, batch: Any, noise: torch.Tensor | None = None) -> float:
        """One step of `Q^W` towards `Q^A`, on the noise that was executed or on standard normal `noise (B, n)`, denoised."""
        u, chunk = batch.u, batch.chunk
        if noise is not None:
            u = noise / self.config.noise_bound
            chunk = self.denoised(batch.actor_obs, u)
        with torch.no_grad():
            goal = self.nets["values"](batch.critic_obs, chunk)
        loss = 0.5 * (self.nets["noise_values"](batch.critic_obs, u) - goal).square().mean(1).sum()
        self._step("noise_values", self._gradient("noise_values", loss))
        return float(loss.detach())

    def _gradient(self, name: str, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, list(self.nets[name].parameters()))

    def _step(self, name: str, gradient: tuple[torch.Tensor, ...]) -> None:
        """Adam on one network."""
        params = list(self.nets[name].parameters())
        for p, g in zip(params, gradient, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(params, self.config.max_grad_norm)
        self.optimizers[name].step()
