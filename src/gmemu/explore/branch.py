# SPDX-License-Identifier: GPL-2.0-or-later
"""A point of choice on a path: who could go on there, who was tried, and what is left to try."""

from __future__ import annotations

from collections.abc import Collection

from .saved import Choice

__all__ = ["Branch"]


class Branch:
    """What a search on its own and the coordinator of several have in common; either sets the attributes.

    `enabled` are the tasks that may be chosen, `sleep` those of them of which all was done from elsewhere, `done` those that
    were tried and `todo` those that are to be, in order.  `before` is the task that ran before, -1 at the beginning, and
    `preemptions` how often one that could go on was made to wait until then.
    """

    __slots__ = ("before", "chosen", "done", "enabled", "preemptions", "sleep", "todo")

    enabled: Collection[int]
    sleep: Collection[int]
    chosen: int
    done: list[int]
    todo: list[int]
    before: int
    preemptions: int

    @property
    def choice(self) -> Choice:
        """As it's written down."""
        return Choice(self.chosen, tuple(self.done), tuple(self.todo))

    def reverse(self, task: int, initials: frozenset[int]) -> None:
        """See that one of `initials` is tried: `task` if it's among them."""
        known = {self.chosen, *self.done, *self.todo}
        if not known.isdisjoint(initials):
            return
        if task in initials and task in self.enabled:
            self.todo.append(task)
            return
        first = next((t for t in sorted(initials) if t in self.enabled), None)
        if first is not None:
            self.todo.append(first)
        else:
            self.todo += [t for t in self.enabled if t not in known]

    def preempts(self, task: int) -> bool:
        """Whether choosing `task` makes one wait that could have gone on."""
        return self.before >= 0 and self.before != task and self.before in self.enabled

    def allows(self, task: int, most: int | None) -> bool:
        """Whether `task` may be tried with a bound of `most` preemptions."""
        return task not in self.sleep and (most is None or self.preemptions + self.preempts(task) <= most)

    def advance(self, most: int | None) -> tuple[bool, bool]:
        """On to the next task to try.  Whether there is one, and whether the bound on preemptions left one out."""
        left_out = False
        self.done.append(self.chosen)
        while self.todo:
            task = self.todo.pop(0)
            if self.allows(task, most):
                self.chosen = task
                return True, left_out
            left_out = left_out or task not in self.sleep
        return False, left_out
