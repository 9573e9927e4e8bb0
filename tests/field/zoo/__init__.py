"""Small SavedModels as people really have them: what builds them, family by family.

A builder writes one model; what it returns, if anything, is a question with the answer of the
framework itself: `{"inputs": {alias: array}, "outputs": {alias: array}}`.
"""

from tests.field.zoo.registry import BUILDERS, model

__all__ = ["BUILDERS", "model"]
