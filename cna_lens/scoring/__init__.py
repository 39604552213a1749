"""Scorers: from responses to numbers.

A scorer is any function from prompts and responses, in the same order, to one number a response
(a truth value counts as 0 or 1).  Sweeps and benchmarks know nothing else about it, so a new
measure is one new function:

    def length(prompts: Sequence[str], responses: Sequence[str]) -> list[int]:
        return [len(response.split()) for response in responses]
"""

from collections.abc import Callable, Sequence

from cna_lens.scoring.quality import qualities, quality
from cna_lens.scoring.refusal import RefusalClassifier, RefusalRule

__all__ = ["RefusalClassifier", "RefusalRule", "Scorer", "qualities", "quality"]

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
