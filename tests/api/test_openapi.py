from __future__ import annotations

import re
from collections.abc import Callable

from flask import Flask

from api.openapi import description
from api.request_images import MAX_IMAGES


def test_the_document_lists_exactly_the_routes_that_exist(make_app: Callable[..., Flask]) -> None:
    rules = [rule for rule in make_app().url_map.iter_rules() if rule.endpoint != "static"]
    routes = {
        (re.sub(r"<(?:path:|string:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {
        (re.sub(r"(/models/)\{id\}", r"\1{name}", path), method)
        for path, operations in description()["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert documented == routes


def test_the_document_allows_as_many_images_as_an_edit_may_have() -> None:
    schemas = description()["components"]["schemas"]
    assert schemas["EditForm"]["properties"]["image"]["maxItems"] == MAX_IMAGES
    assert schemas["EditRequest"]["properties"]["images"]["maxItems"] == MAX_IMAGES
