"""Settings from flags and a recipe, help texts, and errors as one sentence with exit code 2."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ..data.readers.layouts import OTHER_SPREADSHEETS, TABLE_ENDINGS
from ..errors import InputError, Terminated
from .recipe import read_recipe, recipe_to_flags, without_config


_BOOLEANS = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")
_NOT_A_BOOLEAN = re.compile(r"argument (--\w+).*: Truthy value expected: got (.*) but expected")
_NOT_A_NUMBER = re.compile(r"argument (--\w+).*: invalid (int|float) value: '(.*)'$")
DATA_SOURCES = frozenset({"--dataset", "--data_dir", "--data_file", "--hub_dataset"})
# What other tools, or other commands of this one, call a setting.
_OTHER_NAMES = {
    "--arch": ("--backbone",),
    "--batch": ("--per_device_train_batch_size", "--batch_size"),
    "--batch_size": ("--per_device_train_batch_size",),
    "--data": ("--data_dir",),
    "--epochs": ("--num_train_epochs",),
    "--image_size": ("--image_height", "--image_width"),
    "--imgsz": ("--image_height", "--image_width"),
    "--lr": ("--learning_rate",),
    "--model": ("--backbone",),
    "--num_epochs": ("--num_train_epochs",),
    "--num_workers": ("--dataloader_num_workers",),
    "--optimizer": ("--optim",),
    "--out": ("--output_dir", "--output"),
    "--output": ("--output_dir",),
    "--output_dir": ("--output",),
    "--per_device_eval_batch_size": ("--batch_size",),
    "--per_device_train_batch_size": ("--batch_size",),
    "--steps": ("--max_steps",),
    "--workers": ("--dataloader_num_workers",),
}


@dataclass(frozen=True)
class HelpGroup:
    """Settings that the help shows under one title: the named fields of a dataclass, all of them by default."""

    title: str
    arguments: type
    names: Sequence[str] | None = None

    def fields(self) -> list[Field]:
        """The fields in the order of `names`."""
        known = {one.name: one for one in fields(self.arguments)}
        return [known[name] for name in (known if self.names is None else self.names)]


@dataclass(frozen=True)
class CommandHelp:
    """The help page of a subcommand, printed without importing what the command needs."""

    command: str
    usage: str
    description: str
    example: str
    groups: Sequence[HelpGroup]
    positional: tuple[str, str] | None = None
    # What the usage calls required flags that positional arguments stand for.
    positional_flags: dict[str, str] = field(default_factory=dict)

    def format(self) -> str:
        """Return the page, 100 columns wide."""
        parser = ArgumentParser(
            prog=self.command,
            usage=f"{self.command} {self.usage}",
            description="\n\n".join(textwrap.fill(part, 98) for part in self.description.split("\n")),
            epilog=f"example:\n  {self.example}",
            formatter_class=_formatter,
            add_help=False,
        )
        if self.positional is not None:
            name, text = self.positional
            parser.add_argument(name, help=text, nargs="?")
        for group in self.groups:
            section = parser.add_argument_group(group.title)
            for one in group.fields():
                section.add_argument(f"--{one.name}", metavar=_metavar(one), help=_help_text(one))
        return f"{parser.format_help().rstrip()}\n"


def _formatter(prog: str) -> RawDescriptionHelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=32, width=100)


def _metavar(one: Field) -> str:
    if "metavar" in one.metadata:
        return one.metadata["metavar"]
    if "choices" in one.metadata:
        return "{" + ",".join(one.metadata["choices"]) + "}"
    if "bool" in str(one.type):
        return "true|false"
    if "int" in str(one.type) and one.name.rpartition("_")[2] in ("class", "free"):
        return "COUNT"
    return f"{one.name.rpartition('_')[2].upper()}{' ...' if 'list' in str(one.type) else ''}"


def _help_text(one: Field) -> str:
    text = one.metadata.get("help", "").replace("%", "%%")
    default = one.default if one.default_factory is MISSING else one.default_factory()
    if default is MISSING:
        return f"{text} (required)"
    if default is None or "default" in text:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"{text} (default: {shown.lower() if isinstance(default, bool) else shown})"


def parse_settings(
    page: CommandHelp,
    argv: Sequence[str],
    positional: Callable[[list[str]], list[str]],
    sources: Collection[str] = frozenset(),
    dataclasses: tuple[type, ...] | None = None,
) -> tuple[Any, ...]:
    """
    Parse `[POSITIONAL ...] [RECIPE.yaml] [--config RECIPE.yaml] [--flag value ...]` into one object per dataclass.

    Flags win over the recipe.

    Args:
        page: of the command.
        argv: the arguments.
        positional: turns the arguments that follow no flag into flags.
        sources: flags that name the images: one of them is needed, and one outside the recipe replaces all of the
            recipe's.
        dataclasses: of the settings; by default those of the page's groups.

    Raises:
        InputError: an unknown recipe or setting, a missing one, or a value that a setting does not take.
    """
    argv, recipes = without_config(list(argv))
    dataclasses = dataclasses or tuple(group.arguments for group in page.groups)
    parser = _parser(page.command, dataclasses)
    loose, argv, after_switch = _split_loose(parser, argv)
    recipes += [one for one in loose if Path(one).suffix in (".yaml", ".yml")]
    loose = [one for one in loose if Path(one).suffix not in (".yaml", ".yml")]
    if len(recipes) > 1:
        raise InputError(f"Give one recipe, not {' and '.join(recipes)}.")
    recipe_settings = {} if not recipes else read_recipe(Path(recipes[0]).expanduser())
    try:
        named = positional(loose) if loose else []
        twice = [flag for flag in named if flag.startswith("--") and flag in argv]
        if twice:
            raise InputError(f"{' '.join(loose)}: it is given a second time by {twice[0]}; leave one out.")
    except InputError as error:
        raise InputError(after_switch or str(error)) from error
    if after_switch is not None and any(f"--{name}" in sources for name in recipe_settings):
        raise InputError(after_switch)
    if sources & {*named, *argv}:  # another source replaces all that the recipe says of its own
        recipe_settings = {name: value for name, value in recipe_settings.items() if f"--{name}" not in sources}
    flags = [*recipe_to_flags(recipe_settings), *named, *argv]
    given = _known_flags(parser, dataclasses, flags)
    missing = [page.positional[0]] if sources and not sources & given else []
    try:
        settings = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except _MissingError as error:
        missing += [page.positional_flags.get(flag, flag) for flag in error.flags]
    except InputError:
        raise
    except (ImportError, TypeError, ValueError) as error:  # raised by transformers for a setting's value
        raise InputError(" ".join(str(error).split())) from error
    if missing:
        *most, last = missing
        names = f"{', '.join(most)} and {last}" if most else last
        raise InputError(f"{names} must be given, as in `{page.example}`; see --help.")
    return settings


class _MissingError(Exception):
    """Required flags that are not given."""

    def __init__(self, flags: list[str]) -> None:
        super().__init__()
        self.flags = flags


def _parser(command: str, dataclasses: tuple[type, ...]) -> Any:
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            """Raise one sentence; the usage of all settings is pages long."""
            required = message.removeprefix("the following arguments are required: ")
            if required != message:
                raise _MissingError([flags.partition("/")[0] for flags in required.split(", ")])
            switch, number = _NOT_A_BOOLEAN.match(message), _NOT_A_NUMBER.match(message)
            if switch is not None:
                raise InputError("{} {}: give true or false.".format(*switch.groups()))
            raise InputError(message if number is None else _number_wanted(*number.groups()))

    return Parser(dataclasses, prog=command, allow_abbrev=False)


def _number_wanted(flag: str, kind: str, value: str) -> str:
    """Return what a setting takes in place of a value that is no number, such as `0,4`."""
    with_point = value.replace(",", ".")
    if kind == "float" and _is_number(with_point):
        return f"{flag} {value}: write the number with a point, {flag} {with_point}."
    return f"{flag} {value}: give {'a whole number' if kind == 'int' else 'a number, such as 0.4'}."


def _known_flags(parser: Any, dataclasses: tuple[type, ...], arguments: list[str]) -> set[str]:
    """
    Return the flags among the arguments.

    Raises:
        InputError: no setting has this name.
    """
    given = {argument.partition("=")[0]: at for at, argument in enumerate(arguments) if _is_flag(argument)}
    for flag, at in given.items():
        if flag not in parser._option_string_actions:
            own = [f"--{one.name}" for group in dataclasses for one in fields(group)]
            similar = [name for name in _OTHER_NAMES.get(flag, ()) if name in own]
            similar = similar or get_close_matches(flag, own, n=1, cutoff=0.8)
            hint = f"did you mean {' and '.join(similar)}?" if similar else "see --help."
            value = [one for one in arguments[at + 1 : at + 2] if not _is_flag(one)]
            raise InputError(f"unknown setting {' '.join([arguments[at], *value])}; {hint}")
    return set(given)


def _split_loose(parser: Any, argv: list[str]) -> tuple[list[str], list[str], str | None]:
    """
    Return the arguments that are no flag's value, and the others.

    The third value is a message about an argument of the first kind that follows a switch, such as `--bf16 maybe`.
    """
    loose, flags, after_switch = [], [], None
    capacity = 0.0  # how many more values the last flag takes
    for argument in argv:
        if _is_flag(argument):
            flag = argument.partition("=")[0]
            action = parser._option_string_actions.get(flag)
            optional = 1.0 if action and action.type is str else 0.5  # --fsdp takes text, the others true or false
            capacity = {None: 1.0, "?": optional, 0: 0.0}.get(action.nargs, float("inf")) if action else 1.0
            capacity = 0.0 if "=" in argument else capacity
            flags.append(argument)
        elif capacity >= 1 or (capacity == 0.5 and argument.lower() in _BOOLEANS):
            capacity -= 1
            flags.append(argument)
        else:
            if capacity == 0.5:
                after_switch = f"{flags[-1]} {argument}: give true or false."
            capacity = 0.0
            loose.append(argument)
    return loose, flags, after_switch


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not _is_number(argument)


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True


def images_to_flags(arguments: list[str]) -> list[str]:
    """
    Return the flags of a positional IMAGES argument: a folder, or a table by its ending.

    Raises:
        InputError: there is more than one.
    """
    if len(arguments) > 1:
        raise InputError(f"Give one folder or table of images, not {' and '.join(arguments)}.")
    table = Path(arguments[0]).suffix.lower() in (*TABLE_ENDINGS, *OTHER_SPREADSHEETS)
    return ["--data_file" if table else "--data_dir", arguments[0]]


def run_command(command: str, job: Callable[[], object]) -> None:
    """
    Run `job`; an [`InputError`] becomes one sentence on standard error and exit code 2.

    Ctrl-C and SIGTERM end it with one line and exit codes 130 and 143.
    """
    _silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal's code page may lack the letters of a class name; a file or pipe shows each line at once.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        with _terminated_by_sigterm():
            job()
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        process = "" if rank == "0" else f" in process {rank}"
        sys.stderr.write(f"{command}: error{process}: {error}\n")  # in one piece, also from several processes
        _end(2)
    except KeyboardInterrupt as stopped:
        print(f"\n{command}: stopped. Run the same command again to resume.", file=sys.stderr)
        _end(143 if isinstance(stopped, Terminated) else 130)
    except Exception as error:
        if not is_one_of_several():
            raise
        from ..data.processes import end_after

        end_after(command, error)


def is_one_of_several() -> bool:
    """Return whether torchrun or accelerate launch started this process with others; known before torch is loaded."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _end(code: int) -> NoReturn:
    if not is_one_of_several():
        raise SystemExit(code) from None
    from ..data.processes import end_process

    end_process(code)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """Raise [`Terminated`] on SIGTERM within, but not in one of several processes: waiting, it would not see it."""
    if is_one_of_several():
        yield
        return
    process = os.getpid()

    def terminate(number: int, frame: object) -> None:
        if os.getpid() != process:  # a worker forked from it
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence_libraries() -> None:
    """
    Silence what libraries would print among our lines.

    transformers' bars of reading and writing weights take moments and would hide ours; matplotlib, where there is no
    home to write to, uses a temporary folder and says so at length.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


__all__ = ["CommandHelp", "HelpGroup", "images_to_flags", "is_one_of_several", "parse_settings", "run_command"]
