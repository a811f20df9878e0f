"""Says what is wrong with a text that was meant to be YAML, and in which line, for people who write it by hand."""

from __future__ import annotations

import re

import yaml

_KEY_WITHOUT_SPACE = re.compile(r"""\s*(?:- )?(?P<key>[\w./-]+):(?![\s/])\S""")
_QUOTED = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|\s#.*""")


def yaml_mistake(text: str, error: yaml.MarkedYAMLError) -> str:
    """`LINE: MESSAGE`. The line is the one to correct where that can be told; the parser's is where it noticed."""
    lines = text.splitlines()
    noticed = error.problem_mark.line if error.problem_mark else 0
    begun = error.context_mark.line if error.context_mark else noticed
    problem = str(error.problem or error.context)
    found = _explained(problem, lines, noticed, begun)
    line, message = found or (noticed, problem)
    return f"{line + 1}: {message}"


def _explained(problem: str, lines: list[str], noticed: int, begun: int) -> tuple[int, str] | None:
    """Line and message; None if the parser's own say as much."""
    line = lines[noticed] if noticed < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return noticed, "the line is indented with a tab; write spaces"
    if re.search(r"\{[{%]", _QUOTED.sub("", line)):
        return noticed, (
            "{{ }} and {% %} belong into templates, whose names end in .json.j2; a text with them must be in quotes"
        )
    if problem.startswith("mapping values are not allowed"):
        return _unexpected_colon(lines, noticed)
    if problem.startswith("found character that cannot start"):
        value = line.rpartition(": ")[2].lstrip(" -[{")
        return noticed, f"a text that begins with {value[:1]} must be in quotes"
    if problem.startswith("found undefined alias"):
        return noticed, "a text that begins with * must be in quotes"
    if problem.startswith("did not find expected ',' or '"):
        bracket = {"}": "{", "]": "["}[problem[-2]]
        missing = f"a comma is missing in it, or the `{problem[-2]}` at its end"
        return begun, f"the `{bracket}` that begins here is not closed: {missing}"
    if problem == "found unexpected end of stream":
        return begun, "the quote that begins here is not closed"
    if problem == "did not find expected key":
        return _unexpected_key(lines, noticed)
    if "another document" in problem:
        return noticed, "a file is one document; remove this line and what follows it"
    return None


def _unexpected_colon(lines: list[str], noticed: int) -> tuple[int, str] | None:
    line = lines[noticed]
    if len(re.findall(r":(?:\s|$)", _QUOTED.sub("", line))) > 1 and "{" not in line:
        return noticed, "a text with a colon and a space must be in quotes"
    before = next((index for index in range(noticed - 1, -1, -1) if _is_entry(lines[index])), None)
    if before is None:
        return None
    if match := _KEY_WITHOUT_SPACE.match(lines[before]):
        return before, f"a space is missing after `{match['key']}:`"
    if not re.search(r":(\s|$)", _QUOTED.sub("", lines[before])):
        return before, "a colon is missing at the end of the line"
    if _indent(line) > _indent(lines[before]):
        return noticed, "the line is indented further than the one before it, which has a value already"
    return None


def _unexpected_key(lines: list[str], noticed: int) -> tuple[int, str]:
    for index, line in enumerate(lines[: noticed + 1]):
        if not line.lstrip().startswith("#") and re.sub(r"\\.|'[^']*'", "", line).count('"') % 2:
            return index, "a quote in this line is not closed"
    return noticed, "the line is indented by another number of spaces than those that it belongs to"


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
