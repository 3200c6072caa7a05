"""A JAX function as an ONNX graph.

The function is traced at fixed shapes and its jaxpr translated operation by operation; whatever does not depend on an input is
computed by JAX and stored, loops are unrolled.  What comes out uses a few old operations of ONNX, so that embedded runtimes and
TensorRT can read it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rdp_jax.config import ConfigError

OPSET = 17
"""Of 2022: read by ONNX Runtime from 1.12 and by TensorRT from 8.6 on."""
IR_VERSION = 8

UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "copy": "Identity",
    "copy_p": "Identity",
    "optimization_barrier": "Identity",
    "tanh": "Tanh",
}
BINARY = {
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "or": "Or",
    "pow": "Pow",
    "sub": "Sub",
}
REDUCE = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


@dataclasses.dataclass(frozen=True)
class Value:
    """Something that depends on an input: its name in the graph and what JAX knows of it."""

    name: str
    aval: Any


Known = Value | np.ndarray
"""What is not a `Value` is a constant."""


class Unsupported(ValueError):
    """An operation that cannot be exported."""


class Graph:
    """The graph while it grows."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.initializers: list[Any] = []
        self.count = 0

    def name(self, value: Known) -> str:
        """Name of a value; a constant is stored, once."""
        if isinstance(value, Value):
            return value.name
        array = np.array(value, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"constant_{len(self.constants)}"
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def add(self, kind: str, inputs: Sequence[Known], aval: Any, **attributes: Any) -> Value:
        """A node with one output of this shape and type."""
        self.count += 1
        out = Value(f"{kind.lower()}_{self.count}", aval)
        node = self.onnx.helper.make_node(kind, [self.name(x) for x in inputs], [out.name], **attributes)
        self.nodes.append(node)
        return out

    def type(self, dtype: Any) -> int:
        """ONNX's number of a NumPy type."""
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    # --- building blocks -------------------------------------------------------------------------------------------------

    def shaped(self, x: Known, shape: Sequence[int]) -> Known:
        """`x` reshaped."""
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        if tuple(shape) == x.aval.shape:
            return x
        return self.add("Reshape", [x, np.array(shape, np.int64)], x.aval.update(shape=tuple(shape)))

    def transposed(self, x: Known, order: Sequence[int]) -> Known:
        """`x` with its axes in this order."""
        if isinstance(x, np.ndarray):
            return x.transpose(order)
        if list(order) == list(range(len(order))):
            return x
        shape = tuple(x.aval.shape[i] for i in order)
        return self.add("Transpose", [x], x.aval.update(shape=shape), perm=list(order))


def shape_of(x: Known) -> tuple[int, ...]:
    """Shape of a value or a constant."""
    return tuple(x.aval.shape) if isinstance(x, Value) else x.shape


# --- operations ----------------------------------------------------------------------------------------------------------

Rule = Callable[[Graph, Any, list[Any]], Known]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the translation of these primitives, `(graph, equation, inputs) -> output`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule(*UNARY)
def _unary(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.add(UNARY[eqn.primitive.name], inputs, eqn.outvars[0].aval)


@rule(*BINARY)
def _binary(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.add(BINARY[eqn.primitive.name], inputs, eqn.outvars[0].aval)


@rule("square")
def _square(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.add("Mul", [inputs[0], inputs[0]], eqn.outvars[0].aval)


@rule("integer_pow")
def _integer_pow(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    power = np.array(eqn.params["y"], eqn.outvars[0].aval.dtype)
    return graph.add("Pow", [inputs[0], power], eqn.outvars[0].aval)


@rule("rsqrt")
def _rsqrt(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    return graph.add("Reciprocal", [graph.add("Sqrt", inputs, aval)], aval)


@rule("expm1")
def _expm1(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    # Near zero exp(x) - 1 loses what expm1 is there to keep; tanh(x/2) (exp(x) + 1) is the same number and does not.
    aval = eqn.outvars[0].aval
    half = graph.add("Mul", [inputs[0], np.array(0.5, aval.dtype)], aval)
    more = graph.add("Add", [graph.add("Exp", inputs, aval), np.array(1.0, aval.dtype)], aval)
    return graph.add("Mul", [graph.add("Tanh", [half], aval), more], aval)


@rule("erfc")
def _erfc(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    return graph.add("Sub", [np.array(1.0, aval.dtype), graph.add("Erf", inputs, aval)], aval)


@rule("ne")
def _different(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    return graph.add("Not", [graph.add("Equal", inputs, aval)], aval)


@rule("log1p")
def _log1p(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    return graph.add("Log", [graph.add("Add", [inputs[0], np.array(1.0, aval.dtype)], aval)], aval)


@rule("clamp")
def _clamp(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    low, x, high = inputs
    aval = eqn.outvars[0].aval
    return graph.add("Min", [graph.add("Max", [x, low], aval), high], aval)


@rule("select_n")
def _select(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    if len(inputs) != 3 or eqn.invars[0].aval.dtype != np.bool_:
        raise Unsupported("select_n of more than two cases cannot be exported")
    return graph.add("Where", [inputs[0], inputs[2], inputs[1]], eqn.outvars[0].aval)


@rule("convert_element_type")
def _convert(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    if aval.dtype == eqn.invars[0].aval.dtype:
        return inputs[0]
    return graph.add("Cast", inputs, aval, to=graph.type(aval.dtype))


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.shaped(inputs[0], eqn.outvars[0].aval.shape)


@rule("transpose")
def _transpose(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.transposed(inputs[0], eqn.params["permutation"])


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    aval = eqn.outvars[0].aval
    thin = [1] * len(aval.shape)
    for axis, size in zip(eqn.params["broadcast_dimensions"], shape_of(inputs[0]), strict=True):
        thin[axis] = size
    x = graph.shaped(inputs[0], thin)
    if tuple(thin) == tuple(aval.shape):
        return x
    return graph.add("Expand", [x, np.array(aval.shape, np.int64)], aval)


@rule("concatenate")
def _concatenate(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return graph.add("Concat", inputs, eqn.outvars[0].aval, axis=eqn.params["dimension"])


@rule("stack")
def _stacked(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    return _stack(graph, inputs, eqn.outvars[0].aval, eqn.params["axis"])


@rule("slice")
def _slice(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or [1] * len(start)
    bounds = [np.array(b, np.int64) for b in (start, stop, range(len(start)), steps)]
    return graph.add("Slice", [inputs[0], *bounds], eqn.outvars[0].aval)


@rule("rev")
def _reverse(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    axes = np.array(eqn.params["dimensions"], np.int64)
    first, last = np.full(axes.shape, -1, np.int64), np.full(axes.shape, np.iinfo(np.int64).min, np.int64)
    return graph.add("Slice", [inputs[0], first, last, axes, first], eqn.outvars[0].aval)


@rule("pad")
def _pad(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    low, high, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise Unsupported("pad between elements, or of a negative amount, cannot be exported")
    return graph.add("Pad", [inputs[0], np.array([*low, *high], np.int64), inputs[1]], eqn.outvars[0].aval)


@rule("reduce_sum")
def _sum(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    axes = np.array(eqn.params["axes"], np.int64)
    return graph.add("ReduceSum", [inputs[0], axes], eqn.outvars[0].aval, keepdims=0)


@rule(*REDUCE)
def _reduce(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    kind, axes = REDUCE[eqn.primitive.name], list(eqn.params["axes"])
    return graph.add(kind, inputs, eqn.outvars[0].aval, axes=axes, keepdims=0)


@rule("dot_general")
def _product(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    """A batched matrix product: batch axes, then the free ones, then the contracted ones are each made one axis."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    left, right = inputs
    ls, rs = shape_of(left), shape_of(right)
    left_free = [i for i in range(len(ls)) if i not in (*left_sum, *left_batch)]
    right_free = [i for i in range(len(rs)) if i not in (*right_sum, *right_batch)]

    def size(shape: Sequence[int], axes: Sequence[int]) -> int:
        return int(np.prod([shape[i] for i in axes], dtype=np.int64))

    batch = [size(ls, left_batch)] if left_batch else []
    rows, columns, inner = size(ls, left_free), size(rs, right_free), size(ls, left_sum)
    left = graph.shaped(graph.transposed(left, [*left_batch, *left_free, *left_sum]), [*batch, rows, inner])
    right = graph.shaped(graph.transposed(right, [*right_batch, *right_sum, *right_free]), [*batch, inner, columns])
    out = graph.add("MatMul", [left, right], aval.update(shape=(*batch, rows, columns)))
    return graph.shaped(out, aval.shape)


@rule("conv_general_dilated")
def _convolution(graph: Graph, eqn: Any, inputs: list[Any]) -> Known:
    p, aval = eqn.params, eqn.outvars[0].aval
    if p["batch_group_count"] != 1 or min(min(pair) for pair in p["padding"]) < 0:
        raise Unsupported("a convolution in groups of the batch, or with negative padding, cannot be exported")
    places = p["dimension_numbers"]
    left = graph.transposed(inputs[0], places.lhs_spec)
    for axis, dilation in enumerate(p["lhs_dilation"], start=2):
        left = _spread(graph, left, axis, dilation)
    right = graph.transposed(inputs[1], places.rhs_spec)
    low, high = zip(*p["padding"], strict=True)
    shape = tuple(aval.shape[i] for i in places.out_spec)
    attributes = {"strides": p["window_strides"], "dilations": p["rhs_dilation"], "pads": [*low, *high]}
    attributes = {name: list(value) for name, value in attributes.items()}
    out = graph.add("Conv", [left, right], aval.update(shape=shape), group=p["feature_group_count"], **attributes)
    back = [places.out_spec.index(i) for i in range(len(shape))]
    return graph.transposed(out, back)


def _spread(graph: Graph, x: Known, axis: int, dilation: int) -> Known:
    """`dilation - 1` zeros between neighbours along an axis, as a transposed convolution wants them."""
    if dilation == 1:
        return x
    if isinstance(x, np.ndarray):
        raise Unsupported("a transposed convolution of a constant cannot be exported")
    shape, aval = shape_of(x), x.aval
    length, last = shape[axis], len(shape)
    apart = (*shape[: axis + 1], 1, *shape[axis + 1 :])
    ends = np.zeros(2 * (last + 1), np.int64)
    ends[last + 1 + axis + 1] = dilation - 1
    wide = (*shape[: axis + 1], dilation, *shape[axis + 1 :])
    padded = graph.add("Pad", [graph.shaped(x, apart), ends, np.array(0.0, aval.dtype)], aval.update(shape=wide))
    x = graph.shaped(padded, (*shape[:axis], length * dilation, *shape[axis + 1 :]))
    size = (length - 1) * dilation + 1
    bounds = [np.array([b], np.int64) for b in (0, size, axis)]
    return graph.add("Slice", [x, *bounds], aval.update(shape=(*shape[:axis], size, *shape[axis + 1 :])))


# --- traversal -----------------------------------------------------------------------------------------------------------


def _constant(x: Any) -> Any:
    """As NumPy; random keys, which have no such form, stay."""
    return x if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended) else np.asarray(x)


def _inner(eqn: Any) -> Any | None:
    """The closed jaxpr that an equation merely calls."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None and eqn.primitive.name not in ("scan", "while", "cond"):
            return found if hasattr(found, "consts") else core.ClosedJaxpr(found, ())
    return None


def _evaluate(eqn: Any, inputs: list[Any]) -> list[Any]:
    """An equation of constants, by JAX."""
    given = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
    found = eqn.primitive.bind(*given, **eqn.params)
    return [_constant(x) for x in (found if eqn.primitive.multiple_results else [found])]


def _split(graph: Graph, eqn: Any, inputs: list[Any]) -> list[Known]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    ends = np.cumsum(sizes)
    found: list[Known] = []
    for out, end, size in zip(eqn.outvars, ends, sizes, strict=True):
        bounds = [np.array([b], np.int64) for b in (end - size, end, axis)]
        found.append(graph.add("Slice", [inputs[0], *bounds], out.aval))
    return found


def _scan(graph: Graph, eqn: Any, inputs: list[Any]) -> list[Known]:
    """Unrolled: denoising steps and cells of a recurrent network are few."""
    p = eqn.params
    # Told by their shapes, as versions of JAX differ in how they say it: rows have an axis more outside of the body than inside.
    body = p["jaxpr"]
    carried = sum(out.aval.ndim == aval.ndim for out, aval in zip(eqn.outvars, body.out_avals, strict=True))
    fed = sum(var.aval.ndim != aval.ndim for var, aval in zip(eqn.invars, body.in_avals, strict=True))
    fixed, length = len(inputs) - carried - fed, p["length"]
    constants, carry, rows = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    stacked: list[list[Known]] = []
    for step in range(length):
        i = length - 1 - step if p["reverse"] else step
        out = _run(graph, body, [*constants, *carry, *(_row(graph, x, i) for x in rows)])
        carry, made = out[:carried], out[carried:]
        stacked.append(made)
    if p["reverse"]:
        stacked.reverse()
    outs = [_stack(graph, column, var.aval) for column, var in zip(zip(*stacked), eqn.outvars[carried:], strict=True)]
    return [*carry, *outs]


def _row(graph: Graph, x: Known, i: int) -> Known:
    if isinstance(x, np.ndarray):
        return np.asarray(x[i])
    aval = x.aval.update(shape=x.aval.shape[1:])
    return graph.add("Gather", [x, np.array(i, np.int64)], aval, axis=0)


def _stack(graph: Graph, rows: Sequence[Known], aval: Any, axis: int = 0) -> Known:
    if all(isinstance(x, np.ndarray) for x in rows):
        return np.stack([np.asarray(x) for x in rows], axis)
    thin = (*aval.shape[:axis], 1, *aval.shape[axis + 1 :])
    return graph.add("Concat", [graph.shaped(x, thin) for x in rows], aval, axis=axis)


def _run(graph: Graph, closed: Any, inputs: list[Known]) -> list[Known]:
    """Translates a closed jaxpr; its outputs."""
    jaxpr = closed.jaxpr
    known: dict[Any, Known] = dict(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> Known:
        return _constant(var.val) if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        found = _equation(graph, eqn, [read(var) for var in eqn.invars])
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(graph: Graph, eqn: Any, inputs: list[Any]) -> list[Known]:
    name = eqn.primitive.name
    inner = _inner(eqn)
    if inner is not None:
        return _run(graph, inner, inputs)
    if not any(isinstance(x, Value) for x in inputs):
        return list(_evaluate(eqn, inputs))
    if name == "scan":
        return _scan(graph, eqn, inputs)
    if name == "split":
        return _split(graph, eqn, inputs)
    if name not in RULES:
        raise Unsupported(f"{name} cannot be exported; known are {', '.join(sorted([*RULES, 'scan', 'split']))}")
    return [RULES[name](graph, eqn, inputs)]


def convert(
    function: Callable[..., Any],
    inputs: Mapping[str, tuple[int, ...]],
    output: str,
    path: Path | str,
    description: str = "",
) -> None:
    """Writes `function` as an ONNX file.

    Args:
      function: of float32 arrays, one for each of `inputs`, to one float32 array; whatever else it needs, weights included, is
        bound already and becomes part of the file.
      inputs: name -> shape, batch included, in the order of the arguments.
      output: its name.
      path: where to write; must not exist.
      description: kept in the file.

    Raises:
      Unsupported: an operation has no translation, or an input has no influence (it would be missing in the graph).
      FileExistsError: `path` exists.
      ConfigError: the extra `deploy` is not installed.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; exports overwrite nothing")
    onnx = need("onnx")
    graph = Graph(onnx)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs.values()]
    with jax.default_matmul_precision("highest"):  # of what is computed here and stored, too
        closed = jax.make_jaxpr(function)(*shapes)
    if len(closed.out_avals) != 1:
        raise Unsupported(f"a function with {len(closed.out_avals)} outputs cannot be exported, only with one")
    named: list[Known] = [Value(name, aval) for name, aval in zip(inputs, closed.in_avals, strict=True)]
    (result,) = _run(graph, closed, named)
    aval = closed.out_avals[0]
    if not isinstance(result, Value):
        raise Unsupported("the output depends on no input")
    graph.nodes.append(onnx.helper.make_node("Identity", [result.name], [output]))
    used = {name for node in graph.nodes for name in node.input}
    if unused := [name for name in inputs if name not in used]:
        raise Unsupported(f"the output does not depend on {', '.join(unused)}")

    def info(name: str, like: Any) -> Any:
        return onnx.helper.make_tensor_value_info(name, graph.type(like.dtype), like.shape)

    described = onnx.helper.make_graph(
        graph.nodes,
        "rdp_jax",
        [info(value.name, value.aval) for value in named if isinstance(value, Value)],
        [info(output, aval)],
        graph.initializers,
    )
    model = onnx.helper.make_model(
        described,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rdp_jax",
        doc_string=description,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def need(module: str) -> Any:
    """An optional module of the extra `deploy`.  Raises `ConfigError` with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(module, "not installed", 'installed: pip install "rdp-jax[deploy]"') from error
