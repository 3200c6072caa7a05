"""Exported networks at work."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rdp_jax.checkpoint import CheckpointError
from rdp_jax.export.convert import need


class Session:
    """An ONNX file as a function of NumPy arrays, one for each of its inputs, in their order.

    With inputs `obs` and `noise` it is what `rdp_jax.steer.FunctionBase` takes.  Where the file's batch is fixed, any number of
    rows is run in batches of that size, the last one filled up with its last row; else all at once.

    Args:
      path: a file with one output.
      threads: of ONNX Runtime.

    Raises `CheckpointError` for a file that is missing, damaged, without inputs whose rows are a batch, or of several outputs.
    """

    def __init__(self, path: Path | str, threads: int = 1):
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise CheckpointError(f"{path} does not exist")
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a family of its own, without a common base
            raise CheckpointError(f"{path} is no ONNX file that can be run: {error}") from error
        if len(self.session.get_outputs()) != 1:
            raise CheckpointError(f"{path} has {len(self.session.get_outputs())} outputs; one is wanted")
        self.inputs = [(node.name, tuple(node.shape)) for node in self.session.get_inputs()]
        if not self.inputs or not all(shape for _, shape in self.inputs):
            raise CheckpointError(f"{path} has inputs {self.inputs}; each needs an axis of rows")
        fixed = {shape[0] for _, shape in self.inputs if isinstance(shape[0], int)}
        if len(fixed) > 1:
            raise CheckpointError(f"{path} has inputs {self.inputs}; one number of rows is wanted")
        self.batch: int | None = min(fixed, default=None)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Arrays `(N, ...)` -> `(N, ...)`.  Raises `ValueError` if their number or widths are not the file's."""
        wanted = [(name, ("N", *shape[1:])) for name, shape in self.inputs]
        if len(arrays) != len(wanted) or any(
            not _fits(x.shape[1:], shape[1:]) or len(x) != len(arrays[0])
            for x, (_, shape) in zip(arrays, self.inputs, strict=True)
        ):
            raise ValueError(f"inputs are {[x.shape for x in arrays]}; the file wants {wanted}")
        rows = len(arrays[0])
        batch = self.batch or max(rows, 1)
        index = np.minimum(np.arange(-(-rows // batch) * batch), rows - 1)
        parts = []
        for chosen in index.reshape(-1, batch):
            fed = {name: np.asarray(x[chosen], np.float32) for x, (name, _) in zip(arrays, self.inputs, strict=True)}
            parts.append(self.session.run(None, fed)[0])
        found: np.ndarray = np.concatenate(parts)[:rows]
        return found


def _fits(given: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    """Whether a shape is the one wanted, in which what is no number may be anything."""
    return len(given) == len(wanted) and all(
        b in (a, None) or isinstance(b, str) for a, b in zip(given, wanted, strict=True)
    )
