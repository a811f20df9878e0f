"""Says what is wrong with a text that was meant to be JSON, and where, for people who write it by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from errors import shorten

_CLOSING = {"{": "}", "[": "]"}
_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"?|[{}\[\]]', re.DOTALL)
_WORD = re.compile(r"[^\s,:{}\[\]\"]+")
_SINGLE_BRACES = re.compile(r"\{\s*(?P<name>[A-Za-z_][\w.]*)\s*\}")
_DOLLAR_BRACES = re.compile(r"\$\{\s*(?P<name>[A-Za-z_][\w.]*)\s*\}")
_CONSTANTS = {"true": "true", "false": "false", "none": "null", "null": "null"}
_OTHER_QUOTES = "'`\u2018\u2019\u201a\u201c\u201d\u201e"

Mistake = tuple[str, int]
"""(a sentence, the position in the text)"""


def json_mistake(text: str, error: json.JSONDecodeError) -> Mistake:
    """The mistake in `text` that `error`, of Python's decoder, is about. The position is where the mistake was made; the
    decoder's is where it was noticed."""
    position, before = error.pos, text[: error.pos].rstrip()
    found = text[position : position + 1]
    last = len(before) - 1
    if in_string := _in_string(text, error):
        return in_string, position
    if re.match(r"//|/\*|#", text[position:]):
        return "JSON has no comments; write {# … #}", position
    if not found:
        place = next(iter(reversed(_open_brackets(text))), None)
        if place is None:
            return "it ends too early", position
        return f"one of the brackets that are opened from here on, `{text[place]}`, is not closed", place
    if before.endswith(",") and found in "}]":
        return f"the comma before `{found}` is one too many", last
    if found in "}]":
        return _wrong_bracket(text, position, before), position
    if found in _OTHER_QUOTES:
        return f'JSON has no quotes {found}; write "', position
    if error.msg.startswith("Expecting ','"):
        return _missing_comma(text, position, before), last
    if error.msg.startswith("Expecting ':'"):
        return f"a colon is missing before {_next(text, position)}", last
    if found == ",":
        return "a comma without a value before it", position
    if error.msg.startswith("Expecting property name"):
        return _wrong_key(text, position), position
    return _wrong_value(text, position), position


def repeated_key(text: str, key: str, start: int = 0, earlier: Iterable[str] = ()) -> int:
    """The position of the second `key` in an object of `text`, from `start` on; `start` if there is none. `earlier`: keys
    that count as such of the outermost object."""
    objects: list[set[str]] = [set()]
    for match in _tokens(text, start):
        if match[0] in "{[":
            objects.append(set(earlier) if len(objects) == 1 else set())
        elif match[0] in "}]":
            objects = objects[:-1] or [set()]
        elif match[0] == json.dumps(key, ensure_ascii=False) and text[match.end() :].lstrip().startswith(":"):
            if key in objects[-1]:
                return match.start()
            objects[-1].add(key)
    return start


def _tokens(text: str, start: int = 0) -> Iterator[re.Match[str]]:
    """Its strings and brackets."""
    return _TOKEN.finditer(text, start)


def _open_brackets(text: str) -> list[int]:
    """The positions of the brackets that are not closed, from the outermost to the innermost."""
    opened: list[int] = []
    for match in _tokens(text):
        if match[0] in _CLOSING:
            opened.append(match.start())
        elif match[0] in ("}", "]") and opened:
            opened.pop()
    return opened


def _in_string(text: str, error: json.JSONDecodeError) -> str:
    """What is wrong within a string; empty if it is something else."""
    if error.msg.startswith("Unterminated string"):
        return "the text that begins here has no closing quote"
    if error.msg.startswith("Invalid control character"):
        if text[error.pos] in "\r\n":
            return "a text has no closing quote in its line; write a line break in a text as \\n"
        return f"write the character {text[error.pos]!r} in a text as {json.dumps(text[error.pos])[1:-1]}"
    if error.msg.startswith("Invalid \\"):
        return "a backslash in a text is written twice: \\\\"
    return ""


def _wrong_bracket(text: str, position: int, before: str) -> str:
    opened = _open_brackets(text[:position])
    if not opened:
        return f"this `{text[position]}` is one too many"
    expected = _CLOSING[text[opened[-1]]]
    if text[position] != expected:
        return f"`{text[opened[-1]]}` is open here, so `{expected}` must come before `{text[position]}`"
    if before.endswith(":"):
        return "a value is missing after the colon"
    return f"something is missing before `{text[position]}`"


def _missing_comma(text: str, position: int, before: str) -> str:
    missing = f"a comma is missing before {_next(text, position)}"
    if before.endswith('"') and text[position] != '"':
        return f'{missing}; if it belongs to the text before it, write a quote in a text as \\"'
    return missing


def _wrong_key(text: str, position: int) -> str:
    opening = text[:position].rstrip()
    if opening.endswith("{") and (match := _SINGLE_BRACES.match(text, len(opening) - 1)):
        return f"for {match[0]} write {{{{ {match['name']} }}}}, with two braces"
    word = _WORD.match(text, position)
    return f'the name of an input or node must be in quotes: "{word[0]}"' if word else "a name is missing"


def _wrong_value(text: str, position: int) -> str:
    if match := _DOLLAR_BRACES.match(text, position):
        return f"for {match[0]} write {{{{ {match['name']} }}}}"
    word = _WORD.match(text, position)
    if word is None:
        return f"a value is missing before {_next(text, position)}"
    constant = _CONSTANTS.get(word[0].lower())
    if constant:
        return f"for {word[0]} write {constant}"
    if re.fullmatch(r"\+?\d*\.?\d+", word[0]):
        number = word[0].lstrip("+")
        return f"for {word[0]} write {'0' if number.startswith('.') else ''}{number}"
    return (
        f'{shorten(word[0], 40)} is no JSON value; a text must be in quotes, such as "{shorten(word[0], 40)}"'
    )


def _next(text: str, position: int) -> str:
    """What comes next, for a message."""
    match = re.compile(r'"(?:\\.|[^"\\\n])*"?|[^\s,:{}\[\]"]+|.').match(text, position)
    return shorten(match[0] if match else text[position], 40)
