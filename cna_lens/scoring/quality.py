"""How far a response is from repeating itself.

Steering too hard breaks a model in a way that is easy to count: it loops.  The measure of
arXiv 2605.12290 is one minus the share of repeated n-grams,

    quality = 1 - (n-grams - distinct n-grams) / n-grams = distinct n-grams / n-grams,

on words split at white space, n = 4.  It sees loops, not nonsense: fluent rubbish scores 1.
"""

from collections.abc import Sequence

from cna_lens.errors import InvalidInput
from cna_lens.scoring._rows import check_rows

__all__ = ["qualities", "quality"]


def quality(response: str, n: int = 4) -> float:
    """Distinct n-grams over n-grams, in (0, 1]; 1 for a response with fewer than `n` words.

    Raises:
        InvalidInput: `n` is below 1.
    """
    if n < 1:
        raise InvalidInput(f"n-grams need n of at least 1, got n={n}")
    words = response.split()
    n_grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(n_grams)) / len(n_grams) if n_grams else 1.0


def qualities(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """`quality` of every response, n = 4; a `Scorer`.  The prompts are not looked at.

    Raises:
        InvalidInput: there are not as many prompts as responses.
    """
    check_rows(prompts, responses)
    return [quality(response) for response in responses]
