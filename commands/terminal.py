"""Text for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with ? for what is no letter, digit, sign or space: names of files, programs and servers are in it, and a
    terminal must not obey them."""
    return "".join(each if each.isprintable() else "?" for each in text)
