"""Proves that a template uses everything that a request may set, so that an answer reports only what was used.

The template is rendered with base values; then one value after another is changed, and each change must change the part
of the graph that the answer's node depends on.

1 render the base values: template errors, graph errors, the answer's node (`template_proof.py`)
2 change each value (`changes.py`): the part must change, texts must arrive unchanged, every graph must be valid, and
  width and height must decide the size of the pictures (`canvas.py`)
3 in each graph of another shape (other nodes or links), and for each boolean, choice and limit: all other values must
  have an effect again, because a value may be used in one branch of the template and forgotten in another
4 for each model: roles of files that no task uses, sizes that a node does not take (`catalogue_proof.py`); its defaults,
  presets, smallest and largest size and largest batch (`model_proof.py`)

The graphs of a large template that only writes its values are filled in instead of rendered (`pattern.py`).

Steps 1 to 3 do not depend on file names, limits and the range of sizes. Models that differ only in those share the
result, which is cached by content. Proofs without a fault are also kept in files (`kept_proofs.py`): a start proves only
what has changed since.
"""

from compiler.proof.catalogue_proof import proofs_to_keep, prove_catalogue

__all__ = ["proofs_to_keep", "prove_catalogue"]
