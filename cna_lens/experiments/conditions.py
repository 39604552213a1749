"""Prompts x conditions -> one tidy table: the engine under every experiment.

A condition is an intervention at a strength, with the labels that its rows carry. All strengths of
an intervention decode together, a row with its own strength each, and the neutral strength, which
is the same for every intervention, decodes once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformer_lens import HookedTransformer

from cna_lens.errors import InvalidInput
from cna_lens.formatting import PromptFormat
from cna_lens.generation import Generation, Sampling, generate
from cna_lens.interventions import Intervention
from cna_lens.progress import track
from cna_lens.scoring import RefusalClassifier, Scorer, qualities

if TYPE_CHECKING:
    import pandas as pd

PromptGroups = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Condition:
    """An intervention at a strength, and the columns that say so in the table."""

    intervention: Intervention
    strength: float
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_neutral(self) -> bool:
        return self.strength == self.intervention.neutral


def default_scorers() -> dict[str, Scorer]:
    """The scores that every table has: `refused` and, so that it is never read alone, `quality`."""
    return {"refused": RefusalClassifier(), "quality": qualities}


def run_conditions(
    model: HookedTransformer,
    prompts: PromptGroups,
    conditions: Sequence[Condition],
    *,
    scorers: Mapping[str, Scorer] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    form: PromptFormat | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Decode every prompt under every condition and score the responses.

    Args:
        prompts: a list, or lists by group (`{"harmful": [...], "benign": [...]}`).
        conditions: see `Condition`; their label columns come in the order of the first one.
        scorers: column name -> scorer, added to `default_scorers()` (or in place of one of them).
        max_new_tokens, batch_size, sampling, form: see `generate`.

    Returns:
        One row a prompt and condition: group, prompt_id, prompt, the labels, response, the scores,
        prompt_tokens, response_tokens, finished.

    Raises:
        InvalidInput: no prompts or conditions; and what `generate` raises.
    """
    import pandas as pd

    groups = dict(prompts) if isinstance(prompts, Mapping) else {"all": prompts}
    rows = [
        {"group": group, "prompt_id": i, "prompt": prompt}
        for group, members in groups.items()
        for i, prompt in enumerate(members)
    ]
    if not rows or not conditions:
        raise InvalidInput(f"nothing to run: {len(rows)} prompts, {len(conditions)} conditions")
    texts = [str(row["prompt"]) for row in rows]

    by_intervention: dict[int, list[Condition]] = {}
    neutral = [condition for condition in conditions if condition.is_neutral]
    for condition in conditions:
        if not condition.is_neutral:
            by_intervention.setdefault(id(condition.intervention), []).append(condition)
    work = ([neutral[:1]] if neutral else []) + list(by_intervention.values())

    responses: dict[tuple[int, float], list[Generation]] = {}
    n_rows = len(texts) * sum(len(together) for together in work)
    with track("responses", n_rows, progress) as advance:
        for together in work:
            strengths = [c.strength for c in together for _ in texts]
            decoded = generate(
                model,
                texts * len(together),
                [] if together[0].is_neutral else [(together[0].intervention, strengths)],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                sampling=sampling,
                form=form,
                progress=False,
            )
            for i, condition in enumerate(together):
                responses[_key(condition)] = decoded[i * len(texts) : (i + 1) * len(texts)]
            advance(len(decoded))

    table = pd.DataFrame(
        [
            {
                **row,
                **condition.labels,
                "response": generation.text,
                "prompt_tokens": generation.prompt_tokens,
                "response_tokens": len(generation.tokens),
                "finished": generation.finished,
            }
            for condition in conditions
            for row, generation in zip(rows, responses[_key(condition)], strict=True)
        ]
    )
    after_response = list(table.columns).index("response") + 1
    for i, (name, scorer) in enumerate({**default_scorers(), **(scorers or {})}.items()):
        scores = list(scorer(list(table["prompt"]), list(table["response"])))
        table.insert(after_response + i, name, scores)
    return table


def _key(condition: Condition) -> tuple[int, float]:
    """Conditions with equal keys have equal responses."""
    return (0, 0.0) if condition.is_neutral else (id(condition.intervention), condition.strength)
