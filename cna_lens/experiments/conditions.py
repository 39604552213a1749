"""Prompts x conditions -> one tidy table: the engine under every experiment.

A condition is an intervention at a strength, with the labels that its rows carry. All strengths of
an intervention decode together, a row with its own strength each, and the neutral strength, which
is the same for every intervention, decodes once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens import HookedTransformer

from cna_lens.errors import InvalidInput
from cna_lens.experiments.journal import Journal
from cna_lens.formatting import PromptFormat
from cna_lens.generation import Generation, Sampling, response_limit, stream_responses
from cna_lens.interventions import Intervention
from cna_lens.models import describe
from cna_lens.progress import track
from cna_lens.provenance import digest
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

    @property
    def effect(self) -> tuple[str, float]:
        """What decides the responses: conditions with equal effects have equal ones."""
        return ("neutral", 0.0) if self.is_neutral else (self.intervention.identity, self.strength)


def as_groups(prompts: PromptGroups) -> dict[str, list[str]]:
    """Prompts by group; a plain list is the group `all`.

    Raises:
        InvalidInput: a string where a list of them is meant.
    """
    groups = prompts if isinstance(prompts, Mapping) else {"all": prompts}
    for group, members in groups.items():
        if isinstance(members, str):
            raise InvalidInput(f"group {group!r} must be a list of prompts, not one string")
    return {group: list(members) for group, members in groups.items()}


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
    journal: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Decode every prompt under every condition and score the responses.

    Args:
        prompts: a list, or lists by group (`{"harmful": [...], "benign": [...]}`).
        conditions: see `Condition`; their label columns come in the order of the first one.
        scorers: column name -> scorer, added to `default_scorers()` (or in place of one of them).
        max_new_tokens, batch_size, sampling, form: see `generate`.
        journal: a file that keeps finished responses. A run that was stopped, however hard, goes
            on from there with the same result; more conditions can be added later.

    Returns:
        One row a prompt and condition: group, prompt_id, prompt, the labels, response, the scores,
        prompt_tokens, response_tokens, finished.

    Raises:
        InvalidInput: no prompts or conditions, a journal of other settings; and what `generate`
            raises.
    """
    import pandas as pd

    groups = as_groups(prompts)
    rows = [
        {"group": group, "prompt_id": i, "prompt": prompt}
        for group, members in groups.items()
        for i, prompt in enumerate(members)
    ]
    if not rows or not conditions:
        raise InvalidInput(f"nothing to run: {len(rows)} prompts, {len(conditions)} conditions")
    texts = [str(row["prompt"]) for row in rows]
    max_new_tokens = response_limit(model, texts, max_new_tokens, form)

    kept = None
    if journal is not None:
        settings = {
            "model": describe(model, form).to_dict(),
            "max_new_tokens": max_new_tokens,
            "sampling": asdict(sampling) if sampling else None,
        }
        kept = Journal(journal, settings)

    # One decoding for each intervention, all its strengths together; the neutral one only once.
    work: dict[str, list[Condition]] = {}
    for condition in conditions:
        together = work.setdefault(condition.effect[0], [])
        if condition.effect not in {c.effect for c in together}:
            together.append(condition)

    responses: dict[tuple[str, float], list[Generation]] = {}
    with track("responses", len(texts) * sum(map(len, work.values())), progress) as advance:
        for together in work.values():
            # A sampled response depends on its row as well (see `Sampling`).
            keys = [
                digest([*map(str, condition.effect), text, str(i if sampling else i % len(texts))])
                for i, (condition, text) in enumerate(product(together, texts))
            ]
            done = {i: found for i, key in enumerate(keys) if kept and (found := kept.get(key))}
            advance(len(done))
            strengths = [condition.strength for condition in together for _ in texts]
            for finished in stream_responses(
                model,
                texts * len(together),
                [] if together[0].is_neutral else [(together[0].intervention, strengths)],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                sampling=sampling,
                form=form,
                skip=done.keys(),
            ):
                if kept is not None:
                    kept.add({keys[i]: found for i, found in finished.items()})
                done |= finished
                advance(len(finished))
            for i, condition in enumerate(together):
                rows_of = range(i * len(texts), (i + 1) * len(texts))
                responses[condition.effect] = [done[row] for row in rows_of]

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
            for row, generation in zip(rows, responses[condition.effect], strict=True)
        ]
    )
    after_response = list(table.columns).index("response") + 1
    for i, (name, scorer) in enumerate({**default_scorers(), **(scorers or {})}.items()):
        scores = list(scorer(list(table["prompt"]), list(table["response"])))
        table.insert(after_response + i, name, scores)
    return table
