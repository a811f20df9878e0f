"""JSON Schemas, node signatures and sampler names as data files, and the code that loads YAML and JSON, validates it
and explains errors. Imports no other package but `errors`."""

from schemas.explain import (
    LocatedError,
    allowed_values,
    explain,
    fast_validity,
    first_error,
    is_valid,
    located_errors,
)
from schemas.loading import load_schema, load_yaml, validator_of
from schemas.nearest import did_you_mean, nearest
from schemas.yaml_document import line_of, lines_of, read_yaml

__all__ = [
    "LocatedError",
    "allowed_values",
    "did_you_mean",
    "explain",
    "fast_validity",
    "first_error",
    "is_valid",
    "line_of",
    "lines_of",
    "load_schema",
    "load_yaml",
    "located_errors",
    "nearest",
    "read_yaml",
    "validator_of",
]
