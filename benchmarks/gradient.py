"""How much of DPPO's gradient is signal, for each denoising step and each lambda of GAE.

    python -m benchmarks.gradient --task door --rollouts 8

A frozen planner explores.  The gradient of its score, times the advantage, is taken over groups of environments that share no
episode: what the groups agree on is signal, the rest is noise that more environments would average away.  The share of the signal
is the mean product of two groups' gradients over the mean square of one.  Values come from a critic that was fitted to the other
half of the environments.  Groups of one half share a critic, whose error counts as signal where it is the same for all (more so
the smaller lambda is).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.standalone import run_command
from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import dppo
from rdp_jax.algos.dppo import DPPOConfig
from rdp_jax.config import ConfigError, ranged
from rdp_jax.diffusion.policy import Pairs
from rdp_jax.gae import gae
from rdp_jax.nets.denoiser import ResidualCritic
from train import cli, output
from train.args import input_file, t1_task
from train.attempt import Attempt
from train.presets import task_dppo
from train.task_args import Sampling, TaskFlags

Array = jax.Array
LAMBDAS = (0.95, 0.8, 0.5, 0.0)
GROUPS = 8
FITS, FIT_STEPS, FIT_BATCH = 3, 800, 1024
COMMAND = cli.Command("benchmarks.gradient", "DPPO's gradient.", f"{__name__}:GradientArgs", f"{__name__}:run_gradient")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientArgs(Sampling, TaskFlags):
    """How much of the gradient that DPPO would take from a planner's rollouts is signal?"""

    task: str = t1_task()
    planner: Path | None = input_file("planner file; left out: the shipped pre-trained one")
    dppo: DPPOConfig = dataclasses.field(default_factory=lambda: task_dppo("cpu"), metadata={"hidden": ("num_envs",)})
    rollouts: int = ranged(8, 1, 1000, "rollouts of an iteration's length")
    chunks: int = ranged(2048, 2, 10**7, "chunks of each group")

    def resolved(self) -> GradientArgs:
        """These arguments with `dppo.num_envs` equal to `num_envs`; left out: fine-tuning's (no flag sets the former)."""
        envs = self.num_envs or task_dppo("cpu").num_envs
        return dataclasses.replace(self, num_envs=envs, dppo=dataclasses.replace(self.dppo, num_envs=envs))

    def check(self) -> None:
        super().check()
        if self.num_envs is not None and self.num_envs < GROUPS:
            raise ConfigError("num_envs", self.num_envs, f"{GROUPS} (groups) or more")


@dataclasses.dataclass(frozen=True)
class Seen:
    """Rollouts on the host, `(T, B, ...)`: observations of actor and critic normalised, `done` where an episode ended."""

    obs: np.ndarray
    critic: np.ndarray
    final: np.ndarray
    chain: np.ndarray
    reward: np.ndarray
    done: np.ndarray


def explore(args: GradientArgs, attempt: Attempt) -> Seen:
    """Rolls the planner out, `args.rollouts` iterations long."""
    config, planner = dataclasses.replace(args.dppo, quiet_steps=0), attempt.planner
    vector = AutoReset(Chunked(attempt.stage.env, planner.config.executed))  # type: ignore[arg-type]
    params = parallel.strong(attempt.stage.params)
    update = dppo.Update(config, planner.actor().policy, vector)
    state = dppo.init(jax.random.key(args.seed), config, update.policy, planner.bundle, vector, params)

    @jax.jit
    def once(state, pool):
        env, episode, data, _ = update.collect(state, params, pool)
        return state.replace(env=env, episode=episode, iteration=state.iteration + 1), data

    parts = []
    with output.Progress(f"gradient {args.task}", total=args.rollouts) as bar:
        for i in range(args.rollouts):
            state, data = once(state, update.fresh(state, params))
            obs = dppo.to_obs(state.base, data.obs["actor"])
            done = data.terminated | data.truncated
            parts.append(jax.device_get((obs, data.obs["critic"], data.final_obs, data.extras, data.reward, done)))
            bar.update(i + 1, (i + 1) * done.size * planner.config.executed, "")
    obs, critic, final, chain, reward, done = (np.concatenate(part) for part in zip(*parts, strict=True))
    centre, spread = critic.mean((0, 1)), critic.std((0, 1)) + 1e-3
    scaled = [np.clip((x - centre) / spread, -5.0, 5.0) for x in (critic, final)]
    return Seen(obs, scaled[0], scaled[1], chain, reward, done)


def fit(sizes: Sequence[int], x: Array, y: Array, key: Array) -> Callable[[Array], Array]:
    """A critic of those hidden widths, fitted to `y (N,)` at `x (N, Do)`."""
    net, optimizer = ResidualCritic(sizes), optax.adamw(optax.cosine_decay_schedule(1e-3, FIT_STEPS), weight_decay=1e-3)
    params = net.init(key, x[:1])["params"]

    def error(params, rows):
        return jnp.mean(jnp.square(net.apply({"params": params}, x[rows]) - y[rows]))

    def step(carry, key):
        params, state = carry
        grads = jax.grad(error)(params, jax.random.randint(key, (FIT_BATCH,), 0, x.shape[0]))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0][0])
    params = run((params, optimizer.init(params)), jax.random.split(key, FIT_STEPS))
    return jax.jit(lambda z: net.apply({"params": params}, z))


def values(config: DPPOConfig, seen: Seen, key: Array) -> tuple[np.ndarray, np.ndarray]:
    """Value of each state and of what came after it, `(T, B)`, by critics of the other half of the environments: `FITS` times
    fitted to lambda-returns over the last critic's values, the first time over none."""
    half = np.arange(seen.reward.shape[1]) % 2
    value, after = np.zeros_like(seen.reward), np.zeros_like(seen.reward)
    for i in range(FITS):
        _, target = returns(seen, value, after, config.gamma, config.value_lambda)
        for h in (0, 1):
            rows = jnp.asarray(seen.critic[:, half == h].reshape(-1, seen.critic.shape[-1]))
            critic = fit(
                config.critic_sizes, rows, jnp.asarray(target[:, half == h].ravel()), jax.random.fold_in(key, 2 * i + h)
            )
            value[:, half != h] = critic(jnp.asarray(seen.critic[:, half != h]))
            after[:, half != h] = critic(jnp.asarray(seen.final[:, half != h]))
    return value, after


def returns(
    seen: Seen, value: np.ndarray, after: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and lambda-returns `(T, B)`; a time limit is an end, as in fine-tuning of these tasks."""
    told = [jnp.asarray(x) for x in (seen.reward, value, after, seen.done, np.zeros_like(seen.done))]
    advantage, target = gae(told[0], told[1], told[2], told[3], told[4], gamma, lam)
    return np.asarray(advantage), np.asarray(target)


def share(gradients: np.ndarray) -> tuple[float, float]:
    """Share of what the rows of `gradients (G, P)` have in common in their mean square, and its standard error over the rows."""
    products, count = gradients @ gradients.T, len(gradients)
    squares = np.diag(products)
    common = (products.sum(1) - squares) / (count - 1) / squares.mean()
    return float(common.mean()), float(common.std() / np.sqrt(count))


def reach(gradients: np.ndarray) -> tuple[float, float]:
    """How far steps along such gradients `(G, P)` get for the KL that they cost, where they are mostly noise; with its standard
    error (jackknife).

    The mean product of two rows over its root mean square: a step along one row gains as much as another row agrees with it, and
    costs a KL as the square of that, as the Fisher information is the second moment of scores.
    """

    def of(products: np.ndarray) -> float:
        pairs = products[~np.eye(len(products), dtype=bool)]
        return float(pairs.mean() / np.sqrt(np.square(pairs).mean()))

    products, count = gradients @ gradients.T, len(gradients)
    left = [of(np.delete(np.delete(products, g, 0), g, 1)) for g in range(count)]
    return of(products), float(np.std(left) * np.sqrt(count - 1))


def by_part(gradients: np.ndarray, weights: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """`share` and `reach` of the gradients `(G, P)` as Adam scales them, of all of the network and of each of its parts alone."""
    rms = np.sqrt(np.square(gradients).mean(0))
    scaled = gradients / np.maximum(rms, 1e-6 * rms.max())
    ends = np.cumsum([sum(x.size for x in jax.tree.leaves(weights[name])) for name in sorted(weights)])
    parts = dict(zip(sorted(weights), np.split(scaled, ends[:-1], axis=1), strict=True))
    return {name: {"share": share(part), "reach": reach(part)} for name, part in {"all": scaled, **parts}.items()}


def shares(args: GradientArgs, attempt: Attempt, seen: Seen, advantages: dict[float, np.ndarray]) -> dict[str, Any]:
    """Of every lambda: the shares per step, of the gradient that DPPO takes with 0, 1, ... of its last steps left out, and of the
    one in which each step's score is weighted by its std, and what parts of the network have of the last."""
    planner, config, rng = attempt.planner, args.dppo, np.random.default_rng(args.seed)
    policy, weights = planner.actor().policy, planner.bundle.weights
    steps, rows = seen.chain.shape[2] - 1, planner.config.executed

    @jax.jit
    def gradient(obs, chain, advantage, k):
        def score(weights):
            inner = jnp.full(obs.shape[0], k)
            pairs = Pairs(obs=obs, x=chain[:, 0], x_next=chain[:, 1], k=inner)
            elements = policy.score(weights, steps, pairs)[0][:, :rows]
            return (elements.mean((1, 2)) * advantage).mean()

        return jax.flatten_util.ravel_pytree(jax.grad(score)(weights))[0]

    found: dict[float, list[list[np.ndarray]]] = {lam: [] for lam in advantages}
    group = np.arange(seen.reward.shape[1]) % GROUPS
    with output.Progress("gradients", total=GROUPS) as bar:
        for g in range(GROUPS):
            t, b = np.nonzero(np.broadcast_to(group == g, seen.reward.shape))
            picked = rng.permutation(len(t))[: args.chunks]
            t, b = t[picked], b[picked]
            for lam, advantage in advantages.items():
                each = [
                    np.asarray(gradient(seen.obs[t, b], seen.chain[t, b, k : k + 2], advantage[t, b], k))
                    for k in range(steps)
                ]
                found[lam].append(each)
            bar.update(g + 1, 0, "")
    discount = config.gamma_denoising ** np.arange(steps - 1, -1, -1)
    table = {}
    for lam, grads in found.items():
        stacked = np.asarray(grads)  # (G, K', P)
        kept = {n: np.einsum("k,gkp->gp", discount[: steps - n], stacked[:, : steps - n]) for n in range(steps)}
        by_std = np.einsum("k,gkp->gp", np.asarray(policy.exploring.std)[-steps:], stacked)
        table[f"{lam:g}"] = {
            "steps": [share(stacked[:, k]) for k in range(steps)],
            "norms": [float(np.linalg.norm(stacked[:, k], axis=-1).mean()) for k in range(steps)],
            "without_last": {str(n): share(total) for n, total in kept.items()},
            "by_std": share(by_std),
            "by_part": by_part(by_std, weights),
        }
    return table


def run_gradient(args: GradientArgs) -> dict[str, Any]:
    """Shares of signal, with standard errors, and what they were measured on."""
    start = time.monotonic()
    attempt = Attempt(args, "dppo")
    seen = explore(args, attempt)
    value, after = values(args.dppo, seen, jax.random.key(args.seed))
    advantages, explained = {}, {}
    for lam in LAMBDAS:
        advantage, target = returns(seen, value, after, args.dppo.gamma, lam)
        advantages[lam] = (advantage - advantage.mean()) / advantage.std()
        explained[f"{lam:g}"] = float(1.0 - np.var(target - value) / np.var(target))
    std = np.asarray(attempt.planner.actor().policy.exploring.std)
    return output.summary(
        "gradient",
        seed=args.seed,
        backend=attempt.stage.env.physics.name,
        num_envs=args.dppo.num_envs,
        wall_s=time.monotonic() - start,
        metrics={
            "success_rate": float(seen.reward.sum() / max(int(seen.done.sum()), 1)),
            "episodes": int(seen.done.sum()),
            "chunks_per_group": min(args.chunks, seen.reward.size // GROUPS),
            "std": [float(s) for s in std[-args.dppo.tuned_steps :]],
            "explained_variance": explained,
            "signal": shares(args, attempt, seen, advantages),
        },
        task=args.task,
        env_steps=seen.reward.size * attempt.planner.config.executed,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(COMMAND, GradientArgs, run_gradient, argv)


if __name__ == "__main__":
    sys.exit(main())
