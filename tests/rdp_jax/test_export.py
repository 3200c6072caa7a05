"""An exported network says what the network in JAX says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdp_jax import callback
from rdp_jax.algos import dsrl
from rdp_jax.checkpoint import CheckpointError
from rdp_jax.config import ConfigError
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.export import convert as module
from rdp_jax.export.convert import Unsupported, convert
from rdp_jax.export.session import Session
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import Actor, Bundle, Dims, PlannerConfig, make_policy
from rdp_jax.steer import FunctionBase, PlannerBase

DIMS, HISTORY, TA, TE, ROWS = Dims(5, 3), 2, 4, 2, 7
DDIM = DiffusionConfig(steps=8, sampler="ddim", ddim_steps=2, first_std=0.5)
DDPM = DiffusionConfig(steps=4, sampler="ddpm")
NOISY = dataclasses.replace(DDIM, step_noise=0.5, correlation=0.5)  # keeps some of its exploration


def config(kind, diffusion=DDIM):
    net = NetConfig(kind=kind, sizes=(32, 32, 32), width=16, depth=2, heads=2)
    return PlannerConfig(net=net, diffusion=diffusion, horizon=TA, executed=TE, history=HISTORY)


def bundle_of(config, seed=0):
    """Weights nowhere zero, bounds off centre."""
    params = make_policy(config, DIMS).init(jax.random.key(seed), HISTORY * DIMS.frame)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    params = tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
    obs, action = HISTORY * DIMS.frame, DIMS.action
    return Bundle(
        params, MinMax(jnp.full(obs, -1.0), jnp.full(obs, 3.0)), MinMax(jnp.full(action, 0.0), jnp.full(action, 2.0))
    )


def compared(actor, weights, tmp_path, batch=2):
    """Chunks by JAX and by the file, for the same observations and noise."""
    rng = np.random.default_rng(0)
    shapes = {"obs": (HISTORY * DIMS.frame,), **actor.draws}
    inputs = [rng.normal(size=(ROWS, *shape)).astype(np.float32) for shape in shapes.values()]

    def function(obs, *drawn):
        return actor.act_on(*weights, obs, *drawn)

    convert(function, {name: (batch, *shape) for name, shape in shapes.items()}, "actions", tmp_path / "net.onnx")
    return np.asarray(jax.jit(function)(*inputs)), Session(tmp_path / "net.onnx")(*inputs), inputs


@pytest.mark.parametrize(
    ("kind", "diffusion"),
    [
        ("dit", DDIM),
        ("mlp", DDIM),
        ("mlp", DDPM),
        ("mlp", NOISY),
        ("unet", DDIM),
        ("lstm", DDIM),
        ("gaussian-mlp", DDIM),
    ],
)
def test_every_kind_of_planner(kind, diffusion, tmp_path):
    planner = config(kind, diffusion)
    actor = Actor(planner, DIMS)
    wanted, found, inputs = compared(actor, (bundle_of(planner), ()), tmp_path)
    assert found.shape == (ROWS, TE * DIMS.action) and np.ptp(wanted, axis=0).min() > 1e-3  # it depends on its inputs
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    names = {"lstm": 1, "gaussian-mlp": 1}.get(kind, 2 + (diffusion is not DDIM))
    assert len(inputs) == names


def test_frozen_and_tuned_steps(tmp_path):
    planner = config("dit")
    actor, base = Actor(planner, DIMS, tuned_steps=1), bundle_of(planner, 5).weights
    wanted, found, inputs = compared(actor, (bundle_of(planner), base), tmp_path)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    alone = Actor(planner, DIMS).act_on(bundle_of(planner), (), *inputs)
    assert np.abs(wanted - alone).max() > 1e-2  # the frozen weights have a say


@pytest.mark.parametrize("diffusion", [DDIM, DDPM, NOISY])
def test_what_is_drawn_from_keys_is_what_acts(diffusion):
    planner = config("mlp", diffusion)
    actor, bundle, keys = Actor(planner, DIMS), bundle_of(planner), jax.random.split(jax.random.key(3), ROWS)
    obs = jax.random.normal(jax.random.key(4), (ROWS, HISTORY * DIMS.frame))
    drawn = actor.drawn(keys)
    assert [x.shape for x in drawn] == [(ROWS, *shape) for shape in actor.draws.values()]
    np.testing.assert_allclose(actor.act_on(bundle, (), obs, *drawn), actor.act(bundle, (), obs, keys), atol=1e-6)


def test_a_file_can_be_steered(tmp_path, monkeypatch):
    """DSRL over a black box: the ONNX file of a planner is the same base policy as the planner."""
    monkeypatch.setattr(callback, "PIECE_BYTES", 64)  # arguments in several pieces, as large ones are
    planner = config("dit", dataclasses.replace(DDIM, first_std=1.0))
    bundle = bundle_of(planner)
    compared(Actor(planner, DIMS), (bundle, ()), tmp_path)
    own = PlannerBase(planner, DIMS)
    outside = FunctionBase(Session(tmp_path / "net.onnx"), own.noise_shape, own.chunk_dim)
    obs, noise = jnp.ones((ROWS, HISTORY * DIMS.frame)), jax.random.normal(jax.random.key(0), (ROWS, *own.noise_shape))
    chunk = jax.jit(outside.sample)((), obs, noise)
    np.testing.assert_allclose(chunk, own.to_env(bundle, own.sample(bundle, obs, noise)), atol=2e-5)
    nets = dsrl.Networks(dsrl.DSRLConfig(), outside, 0)
    assert nets.n == TA * DIMS.action


def test_any_number_of_rows_goes_through_a_file_without_a_fixed_one(tmp_path):
    onnx = pytest.importorskip("onnx")
    seen = [
        onnx.helper.make_tensor_value_info(name, 1, rows)
        for name, rows in (("obs", ["batch", 2]), ("noise", [None, 2]))
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["obs", "noise"], ["out"])],
        "net",
        seen,
        [onnx.helper.make_tensor_value_info("out", 1, ["batch", 2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "free.onnx")
    session, x = Session(tmp_path / "free.onnx"), np.arange(10.0).reshape(5, 2)
    np.testing.assert_allclose(session(x, 2 * x), 3 * x)
    with pytest.raises(ValueError, match="wants"):
        session(x[:, :1], x)
    model.graph.input[0].type.tensor_type.shape.Clear()  # a single number
    onnx.save(model, tmp_path / "scalar.onnx")
    with pytest.raises(CheckpointError, match="axis of rows"):
        Session(tmp_path / "scalar.onnx")


# --- operations ----------------------------------------------------------------------------------------------------------

X = np.linspace(-3.0, 3.0, 24, dtype=np.float32).reshape(2, 3, 4)


def loop(x):
    """A scan backwards with what it carries and what it stacks."""
    last, stacked = jax.lax.scan(lambda c, row: (c * 0.5 + row, c - row), x[:, 0], jnp.moveaxis(x, 1, 0), reverse=True)
    return last[:, None] + jnp.moveaxis(stacked, 0, 1)


FUNCTIONS = {
    "elementwise": lambda x: jnp.exp(-jnp.abs(x)) + jnp.log(x * x + 1.0) - jnp.sqrt(jnp.abs(x)) * jnp.sign(x) / 2.0,
    "waves": lambda x: jnp.sin(x) * jnp.cos(x) + jnp.tanh(x) + jax.lax.erf(x) + jnp.floor(x) - jnp.ceil(x),
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.elu(x) + jax.nn.silu(x) + jax.nn.relu(x) + jax.nn.softplus(x),
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1) + jax.nn.log_softmax(x, axis=1),
    "choice": lambda x: jnp.where((x > 0.5) & ~(x >= 2.0) | (x == -3.0), x, jnp.clip(-x, -1.0, 0.7)),
    "powers": lambda x: x**3 + jax.lax.rsqrt(x * x + 0.1) + jnp.expm1(x) + jnp.log1p(x * x),
    "places": lambda x: jnp.concatenate([x[:, ::-1, 1:3], jnp.pad(x, ((0, 0), (0, 0), (1, 2)))], axis=-1),
    "reductions": lambda x: x - x.mean(-1, keepdims=True) + x.max(1, keepdims=True) - x.min(0) + x.std(),
    "split": lambda x: jnp.stack(jnp.split(x, [1, 3], axis=-1)[:1], 0)[0] * x.transpose(0, 1, 2),
    "products": lambda x: jnp.einsum("bij,bkj,jl->blik", x, x, jnp.arange(8.0).reshape(4, 2)),
    "constants": lambda x: x + jnp.cumsum(jnp.arange(4.0)) + jnp.linalg.norm(jnp.ones(3)),
    "loop": loop,
    "transposed convolution": lambda x: jax.lax.conv_transpose(
        x, jnp.arange(40.0).reshape(2, 4, 5), (3,), ((2, 1),), dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "convolution": lambda x: jax.lax.conv_general_dilated(
        x, jnp.arange(40.0).reshape(2, 4, 5), (2,), ((1, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name, tmp_path):
    function = FUNCTIONS[name]
    convert(function, {"x": X.shape}, "y", tmp_path / "f.onnx")
    wanted = np.asarray(jax.jit(function)(X))
    found = Session(tmp_path / "f.onnx").session.run(None, {"x": X})[0]
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_small_differences_from_one_survive(tmp_path):
    x = np.float32([[1e-6, -3e-7, 2e-4]])
    convert(jnp.expm1, {"x": x.shape}, "y", tmp_path / "f.onnx")
    np.testing.assert_allclose(Session(tmp_path / "f.onnx")(x), np.expm1(x.astype(np.float64)), rtol=1e-5)


def test_what_cannot_be_exported_is_named(tmp_path):
    path = tmp_path / "f.onnx"
    for function, complaint in (
        (jnp.sort, "sort"),
        (lambda x: jnp.ones(3), "no input"),
        (lambda x: (x, x), "2 outputs"),
        (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0))), "pad"),
    ):
        with pytest.raises(Unsupported, match=complaint):
            convert(function, {"x": (2, 3)}, "y", path)
    with pytest.raises(Unsupported, match="depend on unused"):
        convert(lambda x, unused: x + 1, {"x": (2,), "unused": (2,)}, "y", path)
    assert not path.exists()
    convert(lambda x: x + 1, {"x": (2,)}, "y", path)
    with pytest.raises(FileExistsError, match="overwrite"):
        convert(lambda x: x + 2, {"x": (2,)}, "y", path)


def test_files_and_inputs_that_do_not_fit(tmp_path):
    convert(lambda obs, noise: obs.sum(-1) + noise, {"obs": (2, 3), "noise": (2,)}, "y", tmp_path / "f.onnx")
    run = Session(tmp_path / "f.onnx")
    np.testing.assert_allclose(run(np.ones((5, 3)), np.arange(5.0)), 3.0 + np.arange(5.0))
    for inputs in ((np.ones((2, 3)),), (np.ones((2, 4)), np.ones(2)), (np.ones((2, 3)), np.ones(3))):
        with pytest.raises(ValueError, match="the file wants"):
            run(*inputs)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for path in ("bad.onnx", "missing.onnx"):
        with pytest.raises(CheckpointError, match=path):
            Session(tmp_path / path)
    with pytest.raises(ConfigError, match=r"rdp-jax\[deploy\]"):
        module.need("a_module_that_nobody_has")
