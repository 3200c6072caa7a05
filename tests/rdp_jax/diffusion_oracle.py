"""Diffusion formulas in float64 NumPy, step by step and written apart from the library: the oracle of its tests."""

import math

import numpy as np


def betas(steps):
    def f(i):
        return math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(max(1 - f(t + 1) / f(t), 0.0), 0.999) for t in range(steps)])


def bars(steps):
    return np.cumprod(1 - betas(steps))


def ddpm_step(x, eps, t, steps, clip):
    """Posterior mean and std of q(x_{t-1} | x_t, x0), from Bayes' rule on the forward process."""
    beta, bar = betas(steps)[t], bars(steps)
    before = bar[t - 1] if t > 0 else 1.0
    x0 = np.clip((x - math.sqrt(1 - bar[t]) * eps) / math.sqrt(bar[t]), -clip, clip)
    if t == 0:
        return x0, 0.0
    # Product of N(x_t; sqrt(1-beta) x_{t-1}, beta) and N(x_{t-1}; sqrt(before) x0, 1 - before).
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (math.sqrt(1 - beta) / beta * x + math.sqrt(before) / (1 - before) * x0) / precision
    return mean, math.sqrt(1 / precision)


def ddim_step(x, eps, t, t_before, steps, eta, clip):
    bar = bars(steps)
    a, before = bar[t], bar[t_before] if t_before is not None else 1.0
    x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
    eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
    std = eta * math.sqrt((1 - before) / (1 - a) * (1 - a / before))
    return math.sqrt(before) * x0 + math.sqrt(max(0.0, 1 - before - std**2)) * eps, std


def log_prob(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
