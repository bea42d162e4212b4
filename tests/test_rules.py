# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way in which a call can fail is a rule, and every rule is a way in which a call can fail."""

from __future__ import annotations

import ast
import builtins
import pickle
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import gmemu
from gmemu.profiles.table import CONFIGURATIONS, PROFILES
from gmemu.rules import AREAS, KernelError, MemoryFault, Rule, catalogue
from gmemu.uapi.errno import errno_name

SOURCE = Path(gmemu.__file__).parent
KERNEL = sorted(path for floor in ("mm", "kvm", "hw") for path in (SOURCE / floor).rglob("*.py"))
OS_ERRORS = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, OSError)}


def name_of(path: Path) -> str:
    """The module's path, for test ids."""
    return str(path.relative_to(SOURCE))


@cache
def parsed(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text(), str(path))


def rule_modules(tree: ast.Module) -> dict[str, str]:
    """Names by which the module knows areas of rules: alias -> area.  Wherever in the module they are imported."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == "rules":
            found.update({alias.asname or alias.name: alias.name for alias in node.names if alias.name in AREAS})
    return found


def used_rules(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every rule that the module mentions: area and constant."""
    areas = rule_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in areas:
            yield areas[node.value.id], node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-2:-1] == ["rules"]:
            area = (node.module or "").split(".")[-1]
            yield from ((area, alias.name) for alias in node.names if area in AREAS)


@cache
def makers() -> set[str]:
    """Functions of the kernel that return an error for the caller to raise; they get it from a rule, too."""
    functions = (node for path in KERNEL for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef))
    return {node.name for node in functions if node.returns is not None and ast.unparse(node.returns) == "KernelError"}


def constants(area: str) -> dict[str, Rule]:
    """The rules that an area declares, by constant."""
    module = import_module(f"gmemu.rules.{area}")
    return {name: value for name, value in vars(module).items() if isinstance(value, Rule)}


class Raises:
    """Judges the `raise` statements of one module."""

    def __init__(self, tree: ast.Module) -> None:
        self.areas = rule_modules(tree)
        self.assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.assigned.setdefault(target.id, []).append(node.value)

    def is_rule(self, node: ast.expr) -> bool:
        """Whether the expression is a declared rule, or a choice among such."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in self.areas:
            return node.attr in constants(self.areas[node.value.id])
        if isinstance(node, ast.IfExp):
            return self.is_rule(node.body) and self.is_rule(node.orelse)
        if isinstance(node, ast.Name) and node.id in self.assigned:
            return all(self.is_rule(value) for value in self.assigned[node.id])
        return False

    def is_allowed(self, node: ast.expr) -> bool:
        """Whether what is raised is no errno at all, or one that a rule makes."""
        if isinstance(node, ast.IfExp):
            return self.is_allowed(node.body) and self.is_allowed(node.orelse)
        if isinstance(node, ast.Call):
            if self.is_rule(node.func):
                return True
            if isinstance(node.func, ast.Name):
                return self.is_other_exception(node.func.id, node.args)
            return isinstance(node.func, ast.Attribute) and node.func.attr in makers()
        # an exception that was caught, kept, or made by a rule before: that one was judged where it was made
        return isinstance(node, ast.Attribute | ast.Name) and getattr(node, "id", "") not in OS_ERRORS

    def is_other_exception(self, name: str, args: list[ast.expr]) -> bool:
        if name in OS_ERRORS or name == "KernelError":
            return False
        if name in ("BusError", "SegmentationFault", "MemoryFault"):
            return self.is_rule(args[0])
        return True


@pytest.mark.parametrize("path", KERNEL, ids=name_of)
def test_every_errno_that_the_kernel_raises_has_a_rule(path: Path) -> None:
    tree = parsed(path)
    judge = Raises(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert judge.is_allowed(node.exc), f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", KERNEL, ids=name_of)
def test_no_errno_is_made_by_hand(path: Path) -> None:
    """Neither raised nor returned: no OSError, no KernelError, anywhere but in the rules."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            made = node.func.id in OS_ERRORS or node.func.id == "KernelError"
            assert not made, f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"


def test_what_is_mentioned_is_declared() -> None:
    missing = [
        f"{name_of(path)}: {area}.{name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for area, name in used_rules(parsed(path))
        if not hasattr(import_module(f"gmemu.rules.{area}"), name)
    ]
    assert missing == []


@pytest.mark.parametrize("area", AREAS)
def test_every_rule_is_used(area: str) -> None:
    used = {
        name
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "rules"
        for found, name in used_rules(parsed(path))
        if found == area
    }
    assert sorted(set(constants(area)) - used) == []


@pytest.mark.parametrize("rule", catalogue().values(), ids=lambda rule: rule.id)
def test_each_rule_says_what_it_is(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+(-[a-z0-9]+)*)+", rule.id)
    assert rule.text.strip() == rule.text
    assert not rule.text.endswith(".")
    assert rule.source.strip()
    assert not errno_name(rule.errno).startswith("errno")
    assert rule.signal in ("", "SIGBUS", "SIGSEGV")
    assert rule.outcome == (rule.signal or errno_name(rule.errno))
    assert rule.advice == "" or rule.advice.endswith(".")
    assert any(rule.applies(profile) for profile in (*PROFILES.values(), *CONFIGURATIONS.values()))
    assert len([area for area in AREAS for value in constants(area).values() if value is rule]) == 1


@pytest.mark.parametrize("rule", catalogue().values(), ids=lambda rule: rule.id)
def test_each_rule_makes_an_error_that_explains_itself(rule: Rule) -> None:
    hits = rule.hits
    error = rule("what was seen")
    assert (error.errno, error.rule, rule.hits) == (rule.errno, rule, hits + 1)
    assert rule.text in error.why
    assert "what was seen" in error.why
    assert rule.advice in error.why
    assert str(error).startswith(f"{errno_name(rule.errno)} ({rule.id}): ")
    again = pickle.loads(pickle.dumps(error))
    assert (again.rule, again.found, again.errno) == (rule, "what was seen", rule.errno)
    rule.hits = hits


def test_ids_are_unique_and_start_with_an_area() -> None:
    rules = catalogue()
    assert list(rules) == sorted(rules)
    assert all(rule.id == name for name, rule in rules.items())
    assert {name.split(".")[0] for name in rules} <= {*AREAS, "fs", "sev"}  # those of any file, of any SEV guest
    with pytest.raises(ValueError, match="declared twice"):
        gmemu.rules.rule("mm.uaccess", 14, "once more", "nowhere")


def test_a_fault_explains_itself() -> None:
    rule = catalogue()["gmem.fault.private"]
    hits = rule.hits
    fault = gmemu.BusError(rule, 0x1000, "file page 0x1")
    assert isinstance(fault, MemoryFault)
    assert str(fault).startswith("SIGBUS at 0x1000 (gmem.fault.private): ")
    assert "file page 0x1" in fault.why
    assert rule.hits == hits + 1
    rule.hits = hits


def test_an_error_is_an_os_error() -> None:
    rule = catalogue()["fs.fd"]
    hits = rule.hits
    with pytest.raises(OSError, match="EBADF") as caught:
        raise rule()
    assert isinstance(caught.value, KernelError)
    rule.hits = hits
