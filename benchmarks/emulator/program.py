"""PTX text as a list of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Instruction", "Program", "read_program"]


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction; ``operands`` are registers, literals, ``[address]`` or ``{vector}`` as they stand in the text."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None  # the predicate register that must be true, or false with "!" before it
    source: str  # file:line of the kernel

    @property
    def parts(self) -> list[str]:
        """``ld.global.b32`` as ``["ld", "global", "b32"]``."""
        return self.opcode.split(".")

    def __str__(self) -> str:
        return f"{'' if self.guard is None else f'@{self.guard} '}{self.opcode} {', '.join(self.operands)} ({self.source})"


@dataclass(frozen=True)
class Program:
    """A kernel."""

    name: str
    parameters: dict[str, int]  # bytes of each, in order
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def _operands(text: str) -> tuple[str, ...]:
    """Split at commas outside brackets and braces."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            found.append(text[start:place])
            start = place + 1
    return tuple(operand.strip() for operand in [*found, text[start:]] if operand.strip())


def read_program(text: str) -> Program:
    """The one kernel in ``text``."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:.*/)?([^"/]+)"', text, re.MULTILINE))
    head, body = re.search(r"\.visible \.entry (\w+\(.*?)\n\{\n(.*?)\n\}", text, re.DOTALL).groups()
    sizes = {"8": 1, "16": 2, "32": 4, "64": 8}
    parameters = {name: sizes[bits] for bits, name in re.findall(r"\.param \.[a-z](\d+)(?: \.ptr.*?)? (\w+_param_\d+)", head)}
    threads = int(re.search(r"\.reqntid (\d+)", head)[1])
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    statement = ""
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if location := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
            source = f"{files.get(location[1], location[1])}:{location[2]}"
            continue
        if label := re.fullmatch(r"(\$\w+):", line):
            labels[label[1]] = len(instructions)
            continue
        if not statement and (not line or line.startswith(".") or line in "{}"):
            continue
        statement += " " + line
        if not line.endswith(";"):
            continue
        guard, opcode, rest = re.fullmatch(r"\s*(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*?)\s*;", statement, re.DOTALL).groups()
        instructions.append(Instruction(opcode, _operands(rest), guard, source))
        statement = ""
    return Program(head.split("(")[0], parameters, threads, tuple(instructions), labels)
