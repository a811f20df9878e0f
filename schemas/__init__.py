"""The data that Easel is described by (JSON Schemas, node signatures, names of samplers), and the code that loads YAML
and JSON, checks it and says what is wrong with it. A leaf."""

from schemas.explain import LocatedError, allowed_values, explain, first_error, located_errors
from schemas.loading import load_schema, validator_of
from schemas.yaml_document import line_of, read_yaml

__all__ = [
    "LocatedError",
    "allowed_values",
    "explain",
    "first_error",
    "line_of",
    "load_schema",
    "located_errors",
    "read_yaml",
    "validator_of",
]
