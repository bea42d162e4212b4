# SPDX-License-Identifier: GPL-2.0-or-later
"""A check of the emulation that is switched off or swapped shows in the comparison with what real kernels did."""

import pytest

from gmemu.conformance.table import Table, load

from .mutants import GOLDEN, MUTANTS, Mutant, mutated, reported


@pytest.fixture(scope="module")
def tables() -> list[Table]:
    return [load(path) for path in GOLDEN]


def test_unmutated_nothing_is_reported(tables: list[Table]) -> None:
    assert reported(tables) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_reported(mutant: Mutant, tables: list[Table]) -> None:
    with mutated(mutant):
        assert reported(tables)


def test_mutation_is_undone(tables: list[Table]) -> None:
    with mutated(MUTANTS[0]):
        pass
    assert reported(tables) == ""


def test_mutation_of_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="0 times"), mutated(Mutant("none", "kvm.vm", "no such text", "")):
        pass
