"""The package's own errors: each says what was wrong, with the value, and what to do.

Everything raised on purpose derives from `CnaLensError`, so one `except` catches it all, and
each class also derives from the built-in that a caller would expect (`ValueError`, `OSError`,
`ImportError`).
"""

from __future__ import annotations


class CnaLensError(Exception):
    """Base of every error raised on purpose by cna_lens."""


class InvalidInput(CnaLensError, ValueError):
    """An argument or a data file holds something that the method cannot use."""


class ModelError(CnaLensError, ValueError):
    """A model cannot be found, loaded or used: unknown name, unsupported architecture."""


class TokenizerError(CnaLensError, ValueError):
    """The tokenizer or its chat template is missing or cannot do what was asked."""


class CircuitMismatch(CnaLensError, ValueError):
    """A circuit (or other intervention) belongs to a model of another shape."""


class NonFiniteActivations(CnaLensError, ArithmeticError):
    """A forward pass gave NaN or infinite activations, so no mean would be meaningful."""


class DamagedFile(CnaLensError, ValueError):
    """A file is not what its format says: truncated, edited, or of another kind."""


class OutputError(CnaLensError, OSError):
    """A file or folder could not be written. Nothing half-written is left behind."""


class MissingExtra(CnaLensError, ImportError):
    """An optional dependency is not installed. The message names the extra that brings it."""
