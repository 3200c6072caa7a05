"""What measurements that are commands of their own, outside `rdp`, share: `python -m benchmarks.NAME`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rdp_jax.config import ConfigError
from rdp_jax.programs import exact_products
from rdp_jax.runs import write_json
from train import cli, output


def run_command(
    command: cli.Command,
    kind: type,
    run: Callable[[Any], dict[str, Any]],
    argv: Sequence[str] | None = None,
    failed: Callable[[dict[str, Any]], bool] = lambda record: False,
) -> int:
    """Parses `argv` (left out: the process's) into a `kind`, runs it, shows and writes its summary; returns the exit status.

    That is 2 where an argument is wrong, 1 where the summary says it `failed`.
    """
    if argv is None:  # the process is ours
        exact_products()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = cli.parse(command, kind, words, prog="python -m")
        with output.stdout_to_stderr() if args.json else contextlib.nullcontext():
            record = run(args)
    except ConfigError as error:
        print(f"{command.name}: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "summary.json", record)
    if args.json:
        print(json.dumps(record, allow_nan=False), flush=True)
    else:
        output.show(record)
    return 1 if failed(record) else 0
