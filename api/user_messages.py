"""Reads the last user message of a conversation, in chat completions and in the Responses API: its text is the prompt of a
picture, and an image in it is the one to redraw. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errors import InvalidValue, PromptRequired
from schemas.explain import given_value

_TEXTS, _IMAGES = ("text", "input_text"), ("image_url", "input_image")
"""Types of the parts: of chat completions, and of the Responses API"""


@dataclass(frozen=True)
class UserMessage:
    """A text, and images as `api.request_images` reads them. `position`: among the items of the conversation."""

    text: str
    images: tuple[Any, ...]
    position: int


def last_user_message(items: Any, *, param: str, skips_others: bool = False) -> UserMessage:
    """The last message with the role `user`. `items`: the messages; in the Responses API also a text. `skips_others`: see
    `user_messages`.

    Raises PromptRequired if there is none, or one without text and image unless `skips_others`, and what `user_messages`
    raises.
    """
    if items in (None, "", []):
        form = "as a text or as messages" if param == "input" else "as messages"
        raise PromptRequired(
            f"A prompt is required: `{param}` is {'missing' if items is None else 'empty'}. Send the prompt there, {form} "
            "with the role `user`.",
            param=param,
        )
    if isinstance(items, str) and param == "input":
        found: UserMessage | None = UserMessage(items, (), 0)
    else:
        found = next(user_messages(items, param=param, skips_others=skips_others), None)
    if found is None:
        raise PromptRequired(
            f"A prompt is required: `{param}` has no message with the role `user`.", param=param
        )
    if not (found.text.strip() or found.images or skips_others):
        raise PromptRequired(
            f"A prompt is required: the last user message in `{param}` has no text.", param=param
        )
    return found


def user_messages(items: Any, *, param: str, skips_others: bool = False) -> Iterator[UserMessage]:
    """The user messages, the last one first. `skips_others`: parts that are neither text nor image are left out, because a
    language model reads them; otherwise they raise InvalidValue, as do values of the wrong type."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise InvalidValue(f"`{param}` is {given_value(items)}; it must be a list of messages.", param=param)
    for position, item in reversed(list(enumerate(items))):
        if isinstance(item, Mapping) and item.get("role") == "user":
            parts = list(_parts(item.get("content"), param, skips_others=skips_others))
            texts = [part for part in parts if isinstance(part, str)]
            images = tuple(part for part in parts if not isinstance(part, str))
            yield UserMessage("\n".join(filter(None, texts)), images, position)


def _parts(content: Any, param: str, *, skips_others: bool) -> Iterator[Any]:
    """Texts, and objects with an image."""
    if content is None or isinstance(content, str):
        yield content or ""
        return
    if not isinstance(content, list):
        if skips_others:
            return
        raise InvalidValue(f"`content` in `{param}` must be a text or a list of parts.", param=param)
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXTS and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind in _IMAGES and (image := _image(part)):
            yield image
        elif not skips_others:
            raise InvalidValue(
                f"The last user message has a part that is {given_value(kind or part)}; a picture is drawn from texts "
                f"({' or '.join(_TEXTS)}) and images ({' or '.join(_IMAGES)}).",
                param=param,
            )


def _image(part: Mapping[str, Any]) -> dict[str, Any]:
    """Without its `type` and `detail`: an object that has the image."""
    return {name: part[name] for name in ("image_url", "file_id") if part.get(name)}
