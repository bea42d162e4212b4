# SPDX-License-Identifier: GPL-2.0-or-later
"""What a step does in words, and what it changed: what every format of a trace says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...explore.token import Token

if TYPE_CHECKING:
    from ...explore.trace import Lock, Page, Step, Trace, World

__all__ = ["changes", "event", "function", "held_by", "holders_text", "page_text", "title", "token", "verdict"]

_MODE = {"acquire": "exclusive", "acquire-shared": "shared", "release": "exclusive", "release-shared": "shared"}
_SRCU = {
    "enter": "srcu_read_lock",
    "release": "srcu_read_unlock",
    "sync": "synchronize_srcu",
    "wait": "synchronize_srcu wait",
}
_ABSENT = -1


def token(trace: Trace) -> str:
    """What `gmemu replay` takes."""
    return str(Token(trace.scenario, trace.variants, trace.choices))


def title(trace: Trace) -> str:
    """The scenario and what was decided otherwise."""
    return " + ".join((trace.scenario or "program", *trace.variants))


def verdict(trace: Trace) -> str:
    """How the run ended."""
    if not trace.kind:
        return "nothing was violated"
    return trace.detail if trace.detail.startswith(f"{trace.kind}:") else f"{trace.kind}: {trace.detail}"


def function(step: Step) -> str:
    """The kernel's function that takes the step, or the emulation's that stands for it."""
    where = step.where
    return (where.kernel or where.function.rpartition(".<locals>.")[2]) if where else ""


def event(step: Step) -> str:
    """The step as a trace event: ``lock_acquire: mmap_lock shared``, ``pte_write: mm 0x10``."""
    if step.domain == "srcu":
        return f"{_SRCU.get(step.kind, step.kind)}: {step.object}"
    if step.domain == "lock":
        mode = _MODE.get(step.kind, "")
        return f"lock_{step.kind.removesuffix('-shared')}: {step.object} {mode}".rstrip()
    if not step.domain:
        return step.kind
    name = f"{step.domain}_{step.kind}".replace("-", "_")
    return f"{name}: {step.object.removeprefix(step.domain).strip()}".rstrip(": ")


def held_by(world: World, task: int) -> tuple[str, ...]:
    """The locks that a task holds; a shared one has ``(shared)`` after it."""
    return tuple(
        lock.name + (" (shared)" if mode == "shared" else "")
        for lock in world.locks
        for holder, mode in lock.holders
        if holder == task
    )


def holders_text(lock: Lock, tasks: tuple[str, ...]) -> str:
    """Who holds a lock and who waits for it."""
    held = ", ".join(tasks[task] + (" (shared)" if mode == "shared" else "") for task, mode in lock.holders) or "nobody"
    waits = ", ".join(tasks[task] for task in lock.waiters)
    waits += " wait" if len(lock.waiters) > 1 else " waits"
    return f"{lock.name}: held by {held}" + (f"; {waits}" if lock.waiters else "")


def page_text(page: Page) -> str:
    """A page's state in a line."""
    parts = [page.attribute] if page.attribute else []
    if page.pfn == _ABSENT:
        return ", ".join([*parts, "no memory"])
    parts.append(f"pfn {page.pfn:#x}, {_refs(page)}")
    parts += [f"PTE {pte}" for pte in page.ptes]
    parts += [f"SPTE {spte}" for spte in page.sptes]
    parts += [f"TLB {tlb}" for tlb in page.tlbs]
    return ", ".join(parts + ([f"owner {page.owner}"] if page.owner else []))


def _refs(page: Page) -> str:
    holders = f" ({', '.join(page.holders)})" if page.holders else ""
    return f"{page.refs} reference{'' if page.refs == 1 else 's'}{holders}"


def changes(before: World, after: World) -> tuple[str, ...]:
    """What became of the pages between two moments, a sentence for each change."""
    old = {page.name: page for page in before.pages}
    new = {page.name: page for page in after.pages}
    found = []
    for name in dict.fromkeys((*old, *new)):
        found += [f"{name}: {change}" for change in _page_changes(old.get(name), new.get(name))]
    return tuple(found)


def _page_changes(old: Page | None, new: Page | None) -> list[str]:
    if new is None:
        return ["gone"]
    if old is None:
        return [page_text(new)]
    found = []
    if old.attribute != new.attribute:
        found.append(f"{old.attribute or 'none'} -> {new.attribute or 'none'}")
    if old.pfn != new.pfn:
        found.append("memory is taken away" if new.pfn == _ABSENT else f"gets pfn {new.pfn:#x}")
    for what, was, now in (("PTE", old.ptes, new.ptes), ("SPTE", old.sptes, new.sptes), ("TLB", old.tlbs, new.tlbs)):
        found += [f"{what} {entry} goes" for entry in was if entry not in now]
        found += [f"{what} {entry} is set" for entry in now if entry not in was]
    if old.refs != new.refs and new.pfn != _ABSENT:
        found.append(f"references {old.refs} -> {new.refs}" + (f" ({', '.join(new.holders)})" if new.holders else ""))
    if old.owner != new.owner:
        found.append(f"owner {old.owner or 'none'} -> {new.owner or 'none'}")
    return found
