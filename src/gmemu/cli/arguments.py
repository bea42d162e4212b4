# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command's options are made of.  Imported for each command line, so it imports little."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ..report.style import Style
from .outcome import UsageError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]

__all__ = ["add_inject", "add_profile", "command", "cpu", "finish", "number", "u64"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, for `main` to print."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as it was written, in columns that leave room for the text."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=Style.of(sys.stdout).width - 2)


def command(commands: Commands | None, name: str, about: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A command of `commands`; with none, the program itself.  `about` is a phrase; it becomes the description."""
    description = about if commands is None else f"{about[0].upper()}{about[1:]}."
    if commands is None:
        return _Parser(prog=name, description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False)
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False
    )
    return parser


def finish(parser: argparse.ArgumentParser, handler: str) -> None:
    """The options that every command has, and who carries it out."""
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default=argparse.SUPPRESS, help="write there instead of to standard output"
    )
    parser.set_defaults(handler=handler)


def add_profile(parser: argparse.ArgumentParser, about: str) -> None:
    """The option --profile."""
    parser.add_argument("--profile", metavar="P", help=f"{about}; gmemu profiles lists them")


def add_inject(parser: argparse.ArgumentParser) -> None:
    """The option --inject."""
    parser.add_argument(
        "--inject",
        metavar="ORDER",
        action="append",
        default=[],
        help="order a failure, such as 'psp LAUNCH_UPDATE nth=3 -> RESOURCE_LIMIT'; may be repeated (docs/faults.md)",
    )


def number(text: str) -> int:
    """A number, decimal or 0x."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number; give it as 12 or 0xc") from None


def u64(text: str) -> int:
    """A number of 64 bits, without sign."""
    value = number(text)
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text[:40]} doesn't fit 64 bits")
    return value


def cpu(text: str) -> str | int:
    """A CPU's name, or its signature: names don't start with a digit."""
    return number(text) if text[:1].isdigit() else text
