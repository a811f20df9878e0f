"""An LLM request as it arrived, and its body as an upstream gets it: unchanged but for the model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from conversation.body import Field, NewBody, RequestBody
from conversation.form_fields import FormField, first_part
from conversation.json_fields import JsonField, first_field
from conversation.routes import Route
from errors import InvalidValue


@dataclass(frozen=True)
class LlmRequest:
    """`model`: the name in the request, empty if it has none. `model_field`: where it is in the body, or, without one, an
    empty field where it can be inserted."""

    route: Route
    body: RequestBody
    content_type: str
    model: str
    model_field: Field
    query: str = ""
    """Of the URL, still encoded"""

    def body_for(self, model: str) -> NewBody:
        """The body with this model."""
        if model == self.model_field.value:
            return self.body.with_replaced({})
        return self.body.with_replaced({self.model_field: self._encoded(model)})

    def _encoded(self, model: str) -> bytes:
        is_missing = self.model_field.start == self.model_field.end
        if isinstance(self.model_field, FormField):
            text = model.encode()
            return (
                first_part(self.content_type, "model", text)
                if is_missing and not self.model_field.is_part
                else text
            )
        text = json.dumps(model).encode()
        return first_field("model", text, self.model_field) if is_missing else text


def read_request(route: Route, body: RequestBody, content_type: str, query: str = "") -> LlmRequest:
    """Find the model in a body. Raises InvalidRequest, InvalidValue."""
    field: Field = body.form_field(content_type, "model") if route.is_form else body.json_field("model")
    value = field.value
    if value is not None and not isinstance(value, str):
        raise InvalidValue("`model` must be a string.", param="model")
    if isinstance(field, JsonField) and field.is_container:
        raise InvalidValue("`model` must be a string.", param="model")
    return LlmRequest(route, body, content_type, (value or "").strip(), field, query)
