"""Texts in which ComfyUI's editor chooses from `{red|blue}` at random and removes `//` and `/* */` comments.

Only the editor does that, when it makes a graph, and only in inputs that their node class declares so, such as
CLIPTextEncode's `text`. A text of a graph is written here so that the editor sends the same text.
"""

from __future__ import annotations

import re

_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")
_RUN = re.compile(r"(?P<backslashes>\\*)(?P<special>[{}|])|/(?P<comment>[/*]+)")
_MAX_DEPTH = 20


def without_expansion(text: str) -> str | None:
    """What to type so that the editor makes `text` of it; None if nothing does: a text that ends in an odd number of
    backslashes."""
    if (len(text) - len(text.rstrip("\\"))) % 2:
        return None
    return _RUN.sub(_protected, text)


def _protected(match: re.Match[str]) -> str:
    if match["comment"]:
        # A choice of one option is that option, and separates the two characters that would begin a comment.
        return "/" + "".join(f"{{{character}}}" for character in match["comment"])
    backslashes, special = match["backslashes"], match["special"]
    # The editor reads two characters after each backslash, then removes the last backslash before each of {}|.
    if len(backslashes) % 2 == 0:
        return f"{backslashes}\\{special}"
    return f"{backslashes}\\{{\\{special}}}"


def expanded(text: str, depth: int = 0) -> str | None:
    """What the editor makes of `text`; None if it chooses at random, or if choices are nested deeply."""
    if depth > _MAX_DEPTH:
        return None
    result, rest = [], list(reversed(_COMMENT.sub("", text)))
    while rest:
        character = rest.pop()
        if character == "\\":
            result.append(character + (rest.pop() if rest else "undefined"))
        elif character == "{":
            options = _options(rest)
            only = expanded(options[0], depth + 1) if len(options) == 1 else None
            if only is None:
                return None
            result.append(only)
        else:
            result.append(character)
    return re.sub(r"\\([{}|])", r"\1", "".join(result))


def _options(rest: list[str]) -> list[str]:
    """The texts between the bars of a choice, which begins at the end of `rest`; takes them from it."""
    options, depth = [""], 0
    while rest:
        character = rest.pop()
        if character == "\\":
            character += rest.pop() if rest else "undefined"
        elif character == "{":
            depth += 1
        elif character == "}":
            if not depth:
                break
            depth -= 1
        elif character == "|" and not depth:
            options.append("")
            continue
        options[-1] += character
    return options
