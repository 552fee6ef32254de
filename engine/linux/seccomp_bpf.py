"""Seccomp rules to a classic BPF program: a binary search over system call numbers, ending in shared return instructions.

Owns the code generator; knows nothing of profiles or names. Input is a table of number ranges per architecture, output an array of
`struct sock_filter` (linux/filter.h) that reads `struct seccomp_data` (linux/seccomp.h).

The kernel runs a new filter once for every system call number to learn which are always allowed (since Linux 5.11) and translates every
instruction, so loading costs by program length and search depth: hence a tree whose splits are weighted by the width of the ranges.

Jumps go forward by at most 255 instructions, so the program is built from its end: every target already exists when it is needed,
and one that lies too far is copied (a return) or reached through a nearby unconditional jump.
"""

from __future__ import annotations

import bisect
import struct
from typing import NamedTuple

WORD = 1 << 32
_FILTER = struct.Struct("<HBBI")

LD_WORD, JUMP, JEQ, JGT, JGE, RET, AND = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06, 0x54
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARGUMENTS = 0, 4, 16
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
# Width from which a range counts as unused numbers: no architecture has more calls; what lies above needs no short path.
_USED = 512
# Single values tested one by one before the tree is split further: two keep the depth of a plain tree and save a quarter of its length.
_HOLES = 2


class Condition(NamedTuple):
    """One test of a 64-bit argument: `op` is EQ NE LT LE GT GE or MASKED_EQ (then `value` is the mask and `expected` what must remain)."""

    argument: int
    op: str
    value: int
    expected: int = 0


class Case(NamedTuple):
    """`action` (a SECCOMP_RET_ value) when all conditions hold."""

    conditions: tuple[Condition, ...]
    action: int


class Decision(NamedTuple):
    """What happens to a system call: the first case that holds, else `otherwise`."""

    cases: tuple[Case, ...]
    otherwise: int


Ranges = list[tuple[int, "Decision"]]
"""Starts of ranges in ascending order, the first at 0, each up to the next start (the last up to 2**32)."""


class _Program:
    """Instructions in reverse; a label is the number of instructions from its target to the program's end."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []
        self.returns: dict[int, int] = {}
        self.decisions: dict[Decision, int] = {}

    def add(self, op: int, k: int, true: int = 0, false: int = 0) -> int:
        self.code.append((op, true, false, k))
        return len(self.code)

    def near(self, label: int) -> int:
        """A label that a conditional jump added next, or after one more instruction, can reach."""
        if len(self.code) + 1 - label <= 255:
            return label
        op, _, _, k = self.code[label - 1]
        return self.add(RET, k) if op == RET else self.add(JUMP, len(self.code) - label)

    def jump(self, op: int, k: int, true: int, false: int) -> int:
        """A conditional jump to two labels."""
        if true == false:
            return true
        true = self.near(true)
        false = self.near(false)
        here = len(self.code)
        return self.add(op, k, here - true, here - false)

    def go(self, label: int) -> None:
        """Make the next added instruction (the one before, in program order) fall through to `label`."""
        if label != len(self.code):
            op, _, _, k = self.code[label - 1]
            if op == RET:
                self.add(RET, k)
            else:
                self.add(JUMP, len(self.code) - label)

    def load(self, offset: int, then: int) -> int:
        self.go(then)
        return self.add(LD_WORD, offset)

    def action(self, value: int) -> int:
        label = self.returns.get(value)
        if label is None or len(self.code) + 1 - label > 255:
            label = self.returns[value] = self.add(RET, value)
        return label

    def bytes(self) -> bytes:
        return b"".join(_FILTER.pack(*instruction) for instruction in reversed(self.code))


class _Cell(NamedTuple):
    """A range that all ends in `leaf`, but for a few single values."""

    start: int
    leaf: int | Decision
    holes: list[tuple[int, int | Decision]]


def _cells(starts: list[int], leaves: list[int | Decision]) -> list[_Cell]:
    """Ranges to cells: a lone different value costs one comparison for equality instead of two for order."""
    cells = []
    i = 0
    while i < len(starts):
        cell = _Cell(starts[i], leaves[i], [])
        while len(cell.holes) < _HOLES and i + 2 < len(starts) and starts[i + 2] - starts[i + 1] == 1 and leaves[i + 2] == cell.leaf:
            cell.holes.append((starts[i + 1], leaves[i + 1]))
            i += 2
        cells.append(cell)
        # A full cell ends behind its last hole: what follows belongs to the next one.
        if len(cell.holes) == _HOLES and i + 2 < len(starts) and starts[i + 2] - starts[i + 1] == 1 and leaves[i + 2] == cell.leaf:
            continue
        i += 1
    return cells


def _leaf(program: _Program, leaf: int | Decision) -> int:
    return program.action(leaf) if isinstance(leaf, int) else _decision(program, leaf)


def _tree(program: _Program, starts: list[int], leaves: list[int | Decision]) -> int:
    """Search tree over the accumulator: leaf `i` (an action or a decision) holds from `starts[i]` up to the next start."""
    cells = _cells(starts, leaves)
    weights = [0]
    for cell, following in zip(cells, [*cells[1:], cells[-1]], strict=True):
        weights.append(weights[-1] + min(following.start - cell.start, _USED) + 1)

    def build(low: int, high: int) -> int:
        if high - low == 1:
            label = _leaf(program, cells[low].leaf)
            for value, leaf in reversed(cells[low].holes):
                label = program.jump(JEQ, value, _leaf(program, leaf), label)
            return label
        half = (weights[low] + weights[high]) / 2
        middle = min(max(bisect.bisect_left(weights, half, low + 1, high), low + 1), high - 1)
        if middle > low + 1 and half - weights[middle - 1] < weights[middle] - half:
            middle -= 1
        right = build(middle, high)
        return program.jump(JGE, cells[middle].start, right, build(low, middle))

    return build(0, len(cells))


def _decision(program: _Program, decision: Decision) -> int:
    if not decision.cases:
        return program.action(decision.otherwise)
    label = program.decisions.get(decision)
    if label is None:
        split = _by_value(decision)
        label = _value_tree(program, decision.cases[0].conditions[0].argument, *split) if split else _sequence(program, decision)
        program.decisions[decision] = label
    return label


def _holds(condition: Condition, value: int) -> bool:
    if condition.op == "MASKED_EQ":
        return value & condition.value == condition.expected
    order = (value > condition.value) - (value < condition.value)
    return {"EQ": order == 0, "NE": order != 0, "LT": order < 0, "LE": order <= 0, "GT": order > 0, "GE": order >= 0}[condition.op]


def decide(decision: Decision, arguments: tuple[int, ...]) -> int:
    """What the compiled decision returns for these six arguments; the definition that the generated code is tested against."""
    for case in decision.cases:
        if all(_holds(condition, arguments[condition.argument]) for condition in case.conditions):
            return case.action
    return decision.otherwise


def _by_value(decision: Decision) -> tuple[list[int], list[int]] | None:
    """Ranges of the one argument on which all cases depend, or None where there is more to it."""
    conditions = [case.conditions for case in decision.cases]
    if any(len(each) != 1 or each[0].op == "MASKED_EQ" for each in conditions) or len({each[0].argument for each in conditions}) != 1:
        return None
    borders = sorted({0} | {edge for (condition,) in conditions for edge in (condition.value, condition.value + 1)})
    starts: list[int] = []
    actions: list[int] = []
    for border in borders:
        if border < 1 << 64:
            action = next((case.action for case in decision.cases if _holds(case.conditions[0], border)), decision.otherwise)
            if not actions or actions[-1] != action:
                starts.append(border)
                actions.append(action)
    return starts, actions


def _value_tree(program: _Program, index: int, starts: list[int], actions: list[int]) -> int:
    """Ranges of a 64-bit argument, looked up by its high word, then by its low word where that decides."""
    offset = OFFSET_ARGUMENTS + 8 * index
    borders = sorted({start >> 32 for start in starts} | {(start >> 32) + 1 for start in starts if start % WORD} - {WORD})
    targets = []
    for high in borders:
        first = bisect.bisect_right(starts, high * WORD) - 1
        last = bisect.bisect_right(starts, high * WORD + WORD - 1)
        if last - first == 1:
            targets.append(program.action(actions[first]))
        else:
            low_starts = [max(start - high * WORD, 0) for start in starts[first:last]]
            targets.append(program.load(offset, _tree(program, low_starts, list(actions[first:last]))))
    # With few high words a chain is as good as a tree; nearly always there is just "0" and "above".
    label = targets[-1]
    for border, below in zip(reversed(borders[1:]), reversed(targets[:-1]), strict=True):
        label = program.jump(JGE, border, label, below)
    return program.load(offset + 4, label)


def _sequence(program: _Program, decision: Decision) -> int:
    """Cases one after another, each falling to the next where a condition fails."""
    following = program.action(decision.otherwise)
    for case in reversed(decision.cases):
        label = program.action(case.action)
        for condition in reversed(case.conditions):
            label = _condition(program, condition, label, following)
        following = label
    return following


def _condition(program: _Program, condition: Condition, yes: int, no: int) -> int:
    low_offset = OFFSET_ARGUMENTS + 8 * condition.argument
    high, low = divmod(condition.value, WORD)
    if condition.op == "MASKED_EQ":
        return _masked(program, condition, low_offset, yes, no)
    if condition.op in ("NE", "LT", "LE"):
        opposite = {"NE": "EQ", "LT": "GE", "LE": "GT"}[condition.op]
        return _condition(program, condition._replace(op=opposite), no, yes)
    tests = {"EQ": JEQ, "GT": JGT, "GE": JGE}
    low_test = program.load(low_offset, program.jump(tests[condition.op], low, yes, no))
    equal = program.jump(JEQ, high, low_test, no)
    return program.load(low_offset + 4, equal if condition.op == "EQ" else program.jump(JGT, high, yes, equal))


def _masked(program: _Program, condition: Condition, offset: int, yes: int, no: int) -> int:
    label = yes
    for part in (0, 1):
        mask, expected = (condition.value >> 32 * part) % WORD, (condition.expected >> 32 * part) % WORD
        if not mask and not expected:
            continue
        program.go(program.jump(JEQ, expected, label, no))
        program.add(AND, mask)
        label = program.load(offset + 4 * part, len(program.code))
    return label


def compile_ranges(tables: dict[int, Ranges], foreign: int) -> bytes:
    """The program for `tables` (by AUDIT_ARCH_ value); `foreign` is the action for any other architecture.

    Raises ValueError when it needs more instructions than the kernel takes.
    """
    program = _Program()
    label = program.action(foreign)
    for audit_arch, ranges in reversed(tables.items()):
        starts, leaves = _merge(ranges)
        tree = program.load(OFFSET_NUMBER, _tree(program, starts, leaves))
        label = program.jump(JEQ, audit_arch, tree, label)
    program.load(OFFSET_ARCH, label)
    if len(program.code) > MAX_INSTRUCTIONS:
        raise ValueError(f"seccomp program has {len(program.code)} instructions, the kernel takes {MAX_INSTRUCTIONS}")
    return program.bytes()


def _merge(ranges: Ranges) -> tuple[list[int], list[int | Decision]]:
    starts: list[int] = []
    leaves: list[int | Decision] = []
    for start, decision in ranges:
        leaf = decision if decision.cases else decision.otherwise
        if not leaves or leaves[-1] != leaf:
            starts.append(start)
            leaves.append(leaf)
    return starts, leaves
