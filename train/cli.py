"""`rdp`: one entry per command in `COMMANDS`, nothing heavy loaded before its arguments are known to be good.

Exit status: 0 done, 2 bad arguments or input file, 1 else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rdp_jax.config import ConfigError, validate
from rdp_jax.heap import keep_freed
from rdp_jax.programs import exact_products, keep_programs
from train.args import Resumable
from train.output import Failed, show, stdout_to_stderr

_STYLE = (tyro.conf.FlagCreatePairsOff,)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, loaded when it is called.

    Attributes:
      name: its words.
      help: one line.
      args: `module:class` of its arguments, a frozen dataclass (`train.args.Common` and more).  A classmethod
        `defaults(preset)` gives the values that `--preset` stands for.
      run: `module:function` from such arguments to a summary (`train.output.summary`).
    """

    name: str
    help: str
    args: str
    run: str


COMMANDS = (
    Command(
        "doctor",
        "Versions, devices, physics backends that work, matmul precision, rendering.",
        "train.args:DoctorArgs",
        "train.doctor:run_doctor",
    ),
    Command(
        "demo",
        "The main job on a small scale: refine the shipped pickup planner and its controller, report before and after.",
        "train.task_args:DemoArgs",
        "train.demo:run_demo",
    ),
    Command(
        "controller demo",
        "A short tour in one HTML report: the shipped controller at work.",
        "train.args:ControllerDemoArgs",
        "train.controller_demo:run_demo",
    ),
    Command(
        "controller train",
        "Train a part of the low-level controller.",
        "train.controller_args:TrainArgs",
        "train.controller_train:run_train",
    ),
    Command(
        "controller eval",
        "Evaluate the low-level controller.",
        "train.args:ControllerEvalArgs",
        "train.controller_eval:run_eval",
    ),
    Command(
        "collect",
        "Collect demonstrations of a task's heuristic expert.",
        "train.task_args:CollectArgs",
        "train.collect:run_collect",
    ),
    Command(
        "teleop",
        "Demonstrate a task yourself, by keyboard or gamepad in a browser.",
        "train.task_args:TeleopArgs",
        "train.teleop:run_teleop",
    ),
    Command(
        "pretrain",
        "Imitate demonstrations.",
        "train.task_args:PretrainArgs",
        "train.pretrain:run_pretrain",
    ),
    Command(
        "finetune",
        "Fine-tune a planner by reinforcement learning.",
        "train.task_args:FinetuneArgs",
        "train.finetune:run_finetune",
    ),
    Command(
        "refine",
        "Fine-tune planner and controller together (REFINE-DP).",
        "train.task_args:RefineArgs",
        "train.refine:run_refine",
    ),
    Command(
        "dsrl",
        "Steer a frozen planner by reinforcement learning over its initial noise (DSRL).",
        "train.task_args:DSRLArgs",
        "train.dsrl:run_dsrl",
    ),
    Command(
        "eval",
        "Success of a planner, or of the expert, on a task.",
        "train.task_args:EvalArgs",
        "train.evaluate:run_eval",
    ),
    Command(
        "play",
        "Episodes of a planner or of the expert, in 3-D and as a video.",
        "train.task_args:PlayArgs",
        "train.play:run_play",
    ),
    Command(
        "export",
        "ONNX files of a planner and its controller, with a manifest of their inputs and outputs.",
        "train.task_args:ExportArgs",
        "train.export:run_export",
    ),
    Command(
        "reproduce",
        "A table of the papers, ours beside theirs.",
        "train.args:ReproduceArgs",
        "train.reproduce:run_reproduce",
    ),
    Command(
        "bench",
        "Run a benchmark scenario.",
        "benchmarks.args:BenchArgs",
        "benchmarks.command:run_bench",
    ),
)
GROUPS = {"": "Diffusion planners and whole-body controllers for humanoids.", "controller": "The low-level controller."}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C within it is heard at its end: an extension of which half is loaded crashes when the interpreter ends."""
    usual, heard = signal.default_int_handler, []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not usual:  # somebody else sees to it, or it is ignored
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if heard:
        raise KeyboardInterrupt


def _load(spec: str) -> Any:
    module, _, name = spec.partition(":")
    with _uninterrupted():
        return getattr(importlib.import_module(module), name)


# --- flags from configs ------------------------------------------------------------------------------------------------


def _metavar(hint: Any, meta: typing.Mapping[str, Any]) -> str | None:
    """`INT` rather than `{None}|INT` for what may be left out, the words of which some are open; `None` for tyro's own choice."""
    if meta.get("also"):
        return "{" + ",".join([*meta["choices"], meta["also"][1]]) + "}"
    kinds = typing.get_args(hint)
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kinds[0]) if type(None) in kinds else None


def _help(meta: typing.Mapping[str, Any]) -> str:
    lo, hi = meta.get("optional", (meta.get("lo"), meta.get("hi")))
    span = (
        ""
        if lo is None and hi is None
        else f"{'' if lo is None else f'{lo:.12g}'} .. {'' if hi is None else f'{hi:.12g}'}"
    )
    unit = meta.get("unit", "")
    bounds = ", ".join(text for text in (span, f"in {unit}" if unit else "") if text)
    return meta.get("help", "") + (f" [{bounds}]" if bounds else "")


def _annotated(*parts: Any) -> Any:
    form: Any = Annotated
    return form[parts]


def _default(field: dataclasses.Field, nested: type | None) -> Any:
    """The default of `field`, in the form of flag type `nested` if it is a dataclass."""
    make: Any = field.default_factory
    if nested is not None:
        return dataclasses.field(default_factory=lambda: _to_flags(nested, make()))
    return dataclasses.field(default=field.default)


def _flag_type(cls: type, hidden: Sequence[str] = ()) -> type:
    """A copy of dataclass `cls`, less fields `hidden` (dotted where they are deeper), with its metadata put into annotations
    that tyro reads."""
    hints = typing.get_type_hints(cls)
    fields: list[tuple[str, Any, Any]] = []
    # Help reads better with the flags of the command itself before those of all commands.
    for field in sorted(dataclasses.fields(cls), key=lambda f: f.name not in cls.__annotations__):
        if field.name in hidden:
            continue
        hint, meta, nested = hints[field.name], field.metadata, None
        is_word = meta.get("positional", False)
        if dataclasses.is_dataclass(hint):
            below = [name.removeprefix(f"{field.name}.") for name in hidden if name.startswith(f"{field.name}.")]
            hint = nested = _flag_type(hints[field.name], (*meta.get("hidden", ()), *below))
        elif "choices" in meta and not meta.get("also"):
            hint = Literal[tuple(meta["choices"])]
        elif meta.get("appended"):
            many: Any = tuple
            hint = many[hint, ...]  # of each occurrence of the flag its words
        marks = [
            tyro.conf.arg(
                help=_help(meta) or None,
                metavar=_metavar(hint, meta),
                aliases=[f"--{name}" for name in meta.get("aliases", ())] or None,
            ),
            *([tyro.conf.Positional] if is_word else []),
            *([tyro.conf.UseAppendAction] if meta.get("appended") else []),
        ]
        fields.append((field.name, _annotated(hint, *marks), _default(field, nested)))
    copy = dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)
    copy.__doc__ = cls.__doc__
    return copy


def _to_flags(flag_type: type, config: Any) -> Any:
    """`config` as an instance of the `_flag_type` copy of its class."""
    values = {}
    for field in dataclasses.fields(flag_type):
        value = getattr(config, field.name)
        is_nested = dataclasses.is_dataclass(value)
        values[field.name] = _to_flags(typing.get_args(field.type)[0], value) if is_nested else value
    return flag_type(**values)


def _from_flags(cls: type, flags: Any) -> Any:
    """Inverse of `_to_flags`; hidden fields get their defaults."""
    hints, values = typing.get_type_hints(cls), {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags)}
    for name in [f.name for f in dataclasses.fields(cls) if f.metadata.get("appended")]:
        values[name] = tuple(itertools.chain.from_iterable(values[name]))
    return cls(**{k: _from_flags(hints[k], v) if dataclasses.is_dataclass(v) else v for k, v in values.items()})


def _flags(flag_type: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all flags."""
    for field in dataclasses.fields(flag_type):
        hint = typing.get_args(field.type)[0]
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _complaint(error: ConfigError, cls: type) -> str:
    """The flag behind field `error.field` (dotted, or bare as a nested `check` says it), its value, what is allowed."""
    flags = list(_flags(_flag_type(cls)))
    is_typed = error.field.startswith("--")  # as the flag was given, an alias perhaps
    same_end = [] if is_typed else [f for f in flags if f.rpartition(".")[2] == error.field.rpartition(".")[2]]
    flag = error.field if error.field in flags else next(iter(same_end), None)
    words = {f.name for f in dataclasses.fields(cls) if f.metadata.get("positional")}
    name = error.field if flag is None else flag.upper() if flag in words else "--" + flag.replace("_", "-")
    return f"{name}: got {error.value!r}, allowed: {error.allowed}"


def _preset(words: Sequence[str], choices: Sequence[str]) -> str:
    """The value of `--preset` in `words`, needed before the others because it sets their defaults."""
    found = choices[0]
    for i, word in enumerate(words):
        if word.startswith("--preset="):
            found = word.partition("=")[2]
        elif word == "--preset" and i + 1 < len(words):
            found = words[i + 1]
    if found not in choices:
        raise ConfigError("preset", found, " | ".join(choices))
    return found


def _check_words(words: Sequence[str], cls: type) -> None:
    """Raises `ConfigError` for a flag given an empty value: as a path it would be the current directory; as a list, left out."""
    lists = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(cls) if "tuple[" in str(f.type)}
    for word, after in itertools.zip_longest(words, words[1:]):
        if word.replace("_", "-") in lists and (after is None or after.startswith("--")):
            raise ConfigError(word, "nothing", "one value or more")
    for word, after in itertools.zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if word.startswith("--") and not value and (equals or after == ""):
            raise ConfigError(flag, "", "a value that is not empty")


def parse(command: Command, cls: type, words: Sequence[str], prog: str = "rdp") -> Any:
    """Checked arguments of `command` of `prog`, an instance of `cls`.  Raises `ConfigError`; tyro leaves by `SystemExit`."""
    _check_words(words, cls)
    flag_type = _flag_type(cls)
    default: Any = tyro.MISSING_NONPROP
    if hasattr(cls, "defaults"):
        choices = next(f.metadata["choices"] for f in dataclasses.fields(cls) if f.name == "preset")
        default = _to_flags(flag_type, cls.defaults(_preset(words, choices)))
    flags = tyro.cli(
        flag_type,
        prog=f"{prog} {command.name}".strip(),
        description=cls.__doc__,
        args=words,
        default=default,
        config=_STYLE,
    )
    args = _from_flags(cls, flags)
    args.check_paths()
    return validate(args.resolved() if hasattr(args, "resolved") else args)


# --- running -----------------------------------------------------------------------------------------------------------


def _find(words: Sequence[str]) -> tuple[Command, Sequence[str]] | None:
    for command in COMMANDS:
        name = command.name.split()
        if list(words[: len(name)]) == name:
            return command, words[len(name) :]
    return None


def _explain(words: Sequence[str]) -> None:
    """Help or complaint for words that name no command; leaves by `SystemExit`."""
    group = words[0] if words and words[0] in GROUPS else ""
    below = {c.name.removeprefix(group).split()[0]: c.help for c in COMMANDS if c.name.startswith(group)}
    for name in GROUPS:
        if not group and name:
            below[name] = GROUPS[name]
    choices = [
        _annotated(dataclasses.make_dataclass(name.title(), []), tyro.conf.subcommand(name, description=text))
        for name, text in below.items()
    ]
    one_of: Any = typing.Union
    tyro.cli(
        one_of[tuple(choices)],
        prog=f"rdp {group}".strip(),
        description=GROUPS[group],
        args=words[1:] if group else words,
    )


def placed(command: Command, args: Any) -> Any:
    """`args` of a command that is about to run; one that trains gets a directory of its own where it was given none: what hours
    have learned is not thrown away.
    """
    _load("rdp_jax.runs:git_revision")()  # which the summary names; by then the tree may be another
    spread = _load("rdp_jax.parallel:over_devices")(args)
    if spread is not args:
        # What the learners make of it they check themselves; flags have been checked as they were given.
        args = spread.resolved() if hasattr(spread, "resolved") else spread
    if not isinstance(args, Resumable) or args.out is not None:
        return args
    out = _load("rdp_jax.runs:new_directory")(command.name.replace(" ", "-"))
    print(f"rdp {command.name}: writes to {out}", file=sys.stderr)
    return dataclasses.replace(args, out=out)


def _write(out: Path, record: dict[str, Any]) -> OSError | None:
    """Writes `summary.json`; returns why it could not: the record is still to be shown then."""
    from rdp_jax.runs import write_json  # loads JAX, as the command has by now

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "summary.json", record)
    except OSError as error:
        return error
    return None


def _input_errors() -> tuple[type[BaseException], ...]:
    """Exceptions that mean a bad argument or input file; those of modules not loaded cannot have been raised."""
    named = (
        ("rdp_jax.runs", "RunError"),
        ("rdp_jax.checkpoint", "CheckpointError"),
        ("rdp_jax.data.episodes", "DataError"),
        ("rdp_jax.export.convert", "Unsupported"),
    )
    found = [getattr(sys.modules[module], name) for module, name in named if module in sys.modules]
    files = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, json.JSONDecodeError)
    return (ConfigError, *files, *found)


def run(command: Command, words: Sequence[str]) -> int:
    """Run `command` with `words` after its name; returns the exit status."""
    unwritten: OSError | None = None
    try:
        cls = _load(command.args)
        args = parse(command, cls, words)
        with stdout_to_stderr() if args.json else contextlib.nullcontext():
            args = placed(command, args)
            record = _load(command.run)(args)
            if args.out is not None and args.writes:
                unwritten = _write(args.out, record)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print(f"rdp {command.name}: interrupted", file=sys.stderr)
        return 1
    except _input_errors() as error:
        text = _complaint(error, cls) if isinstance(error, ConfigError) else str(error)
        print(f"rdp {command.name}: {text}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"rdp {command.name}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    if args.json:
        print(json.dumps(record, allow_nan=False), flush=True)
    else:
        show(record)
    if unwritten is not None:
        print(f"rdp {command.name}: summary.json cannot be written: {unwritten}", file=sys.stderr)
        return 1
    return 0


def _terminated(number: int, frame: Any) -> None:
    """As Ctrl-C, so that what is under way is cleared up; a second SIGTERM ends the process where it is."""
    del frame
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `rdp`; returns the exit status."""
    if argv is None:  # the process is ours
        if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, _terminated)
        keep_freed()
        keep_programs()
        exact_products()
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # closed when we began
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os.dup2(sys.stderr.fileno(), 2)
    try:
        found = _find(words)
        if found is None:
            _explain(words)
            return 0
        return run(*found)
    except BrokenPipeError:  # the reader of our output has gone; let nothing more be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except SystemExit as leave:  # tyro: 0 after help, 2 after a complaint
        return leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1


if __name__ == "__main__":
    sys.exit(main())
