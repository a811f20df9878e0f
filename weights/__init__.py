"""Files of weights that are on disk: finding them, and recognizing what they are from the head of a safetensors file. Reads
nothing else of them; never opens pickles. Knows no catalogue, engine or Flask."""

from weights.folders import FoundFile, Scan, scan_models
from weights.header import Header, HeaderInvalid, read_header
from weights.identify import Identity, identify, identify_by_metadata

__all__ = [
    "FoundFile",
    "Header",
    "HeaderInvalid",
    "Identity",
    "Scan",
    "identify",
    "identify_by_metadata",
    "read_header",
    "scan_models",
]
