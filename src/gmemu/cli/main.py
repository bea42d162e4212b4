# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point: parse, carry out, print; and whatever goes wrong ends in one sentence on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from .outcome import ExitCode, Outcome, UsageError
from .parser import build_parser

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["main"]

DEBUG = "GMEMU_DEBUG"
"""Environment variable: set, errors come with their traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's).  Returns the exit code; never raises for what a user did."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return _fail("the output was closed before everything was written", ExitCode.USAGE)
    except (UsageError, OSError) as error:
        return _fail(_sentence(error), ExitCode.USAGE)
    except Exception as error:
        if _is_launch_error(error):
            return _fail(str(error), ExitCode.USAGE)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(f"this is a bug in gmemu ({what}); run it with {DEBUG}=1 to see where", ExitCode.BUG)


def _run(argv: Sequence[str] | None) -> int:
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as done:  # --help, --version
        _write_stdout("")
        return int(done.code or 0)
    if not args.handler:
        _write_stdout(parser.format_help())
        return ExitCode.PASS
    module, _, function = args.handler.partition(":")
    outcome: Outcome = getattr(import_module(f"gmemu.cli.{module}"), function)(args)
    _print(outcome, args)
    return outcome.code


def _print(outcome: Outcome, args: Namespace) -> None:
    from ..report.style import Style

    if not args.json:
        for remark in outcome.remarks:
            _say(f"note: {remark}")
    style = Style() if args.output else Style.of(sys.stdout)
    text = _json(outcome.data) if args.json else outcome.text(style)
    if args.output:
        _write(args.output, text)
    else:
        _write_stdout(text)


def _json(data: object) -> str:
    from json import dumps

    return dumps(data, indent=2) + "\n"


def _write(path: str, text: str | bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace"))
    except (OSError, ValueError) as error:
        raise UsageError(f"the output file {path} can't be written: {getattr(error, 'strerror', '') or error}") from error


def _write_stdout(text: str | bytes) -> None:
    """Write it now, while errors can still be told."""
    if sys.stdout is None:
        return
    if isinstance(text, bytes) and sys.stdout.isatty():
        raise UsageError("this format isn't for a terminal: give -o FILE")
    try:
        if isinstance(text, bytes):
            sys.stdout.buffer.write(text)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        raise
    except OSError as error:
        _abandon_stdout()
        raise UsageError(f"the output can't be written: {error.strerror or error}") from error


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere, so that Python's exit doesn't trip over it again."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())


def _fail(sentence: str, code: ExitCode) -> int:
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exc()
    _say(" ".join(sentence.split()))
    return code


def _say(sentence: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"gmemu: {sentence}", file=sys.stderr, flush=True)


def _is_launch_error(error: Exception) -> bool:
    module = sys.modules.get("gmemu.launch.errors")
    return module is not None and isinstance(error, module.LaunchError)


def _sentence(error: Exception) -> str:
    """What to tell a person.  `KernelError` words itself; Python's own errors have the file's name."""
    strerror, filename = getattr(error, "strerror", None), getattr(error, "filename", None)
    if strerror and filename is not None and not hasattr(error, "rule"):
        return f"{os.fsdecode(filename)}: {strerror}"
    return str(error)
