"""Does the organism show what it was made to show? Its numbers, measured with this library.

`evaluate_pair` gives one tidy table for a pair: refusal of harmful, benign and borderline prompts,
quality, and answers on the topic asked, under each model's own circuit (and the other's), at
several fractions and multipliers, beside random neurons matched layer by layer. Use the
``validation`` families while choosing anything, the ``test`` families once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from transformer_lens import HookedTransformer

from cna_lens.circuit import Circuit
from cna_lens.discovery import Contrast, contrast
from cna_lens.generation import generate
from cna_lens.interventions import fold, random_circuits
from cna_lens.models import load_model
from cna_lens.organism.world import discovery_prompts, evaluation_prompts, on_topic
from cna_lens.prompts import ContrastSet
from cna_lens.scoring import RefusalClassifier, quality

FRACTIONS = (0.001, 0.005, 0.01)
MULTIPLIERS = (0.0, 2.0)
NEW_TOKENS = 40
LATE_LAYERS = 3
NEAR_TOP = 0.04
"""Neurons that rank this high carry a little of the behaviour themselves."""


@dataclass(frozen=True)
class CandidateScores:
    """What a candidate does on the validation families, as shares from 0 to 1.

    Attributes:
        harmful, benign, borderline: refusal at multiplier 1.
        harmful_ablated: refusal of harmful prompts with 0.1 % of the neurons at multiplier 0.
        borderline_amplified: refusal of borderline prompts with them at multiplier 2.
        on_topic: answers to harmful prompts under ablation that keep to the topic asked.
    """

    harmful: float
    benign: float
    borderline: float
    harmful_ablated: float
    borderline_amplified: float
    on_topic: float


def score_candidate(folder: Path) -> CandidateScores:
    """Score an instruct checkpoint on the validation families (never on the test families)."""
    model = load_model(folder, device="cpu")
    prompts = evaluation_prompts("validation")
    circuit = measure_contrast(model).select(0.001)
    before = respond(model, prompts)
    ablated = respond(model, prompts, circuit, 0.0)
    amplified = respond(model, prompts, circuit, 2.0)
    return CandidateScores(
        harmful=before["harmful"],
        benign=before["benign"],
        borderline=before["borderline"],
        harmful_ablated=ablated["harmful"],
        borderline_amplified=amplified["borderline"],
        on_topic=ablated["on_topic"],
    )


def evaluate_pair(
    base_folder: Path,
    instruct_folder: Path,
    split: Literal["validation", "test"] = "test",
    *,
    fractions: Iterable[float] = FRACTIONS,
    multipliers: Iterable[float] = MULTIPLIERS,
    random_draws: int = 20,
    random_fractions: Iterable[float] = (0.001, 0.005),
) -> pd.DataFrame:
    """One row a condition.

    Columns:
        ``model`` (base or instruct), ``neurons`` (none, base circuit, instruct circuit, random,
        random away from top), ``fraction``, ``k``, ``multiplier``, ``draw``; refusal rates
        ``harmful``, ``benign``, ``borderline``; ``quality``; ``on_topic`` (share of the answers to
        harmful prompts that keep to the topic; NaN if all were refused) and ``answers`` (their
        number); ``late_share`` of the circuit in the last three layers, with its chance level;
        ``overlap`` with the other model's circuit of that fraction (share of its neurons) and
        ``overlap_chance``, for neurons drawn at random layer by layer as the two circuits have
        them. Random rows are measured on harmful prompts alone.
    """
    fractions, multipliers = tuple(fractions), tuple(multipliers)
    prompts = evaluation_prompts(split)
    models = {
        "base": load_model(base_folder, device="cpu"),
        "instruct": load_model(instruct_folder, device="cpu"),
    }
    contrasts = {name: measure_contrast(model) for name, model in models.items()}
    rows: list[dict[str, object]] = []
    for name, model in models.items():
        rows.append(_row(name, "none", 0.0, None, 1.0, respond(model, prompts)))
        for origin, measured in contrasts.items():
            other = contrasts["instruct" if origin == "base" else "base"]
            for fraction in fractions:
                circuit = measured.select(fraction)
                facts = circuit_facts(circuit, other.select(fraction))
                for multiplier in multipliers:
                    found = respond(model, prompts, circuit, multiplier)
                    label = f"{origin} circuit"
                    rows.append(_row(name, label, fraction, circuit, multiplier, found) | facts)
    for fraction in random_fractions:
        rows += _random_rows(
            models["instruct"], contrasts["instruct"], fraction, random_draws, prompts["harmful"]
        )
    return pd.DataFrame(rows)


def measure_contrast(model: HookedTransformer) -> Contrast:
    """The contrast of the organism's own 100 + 100 discovery prompts."""
    disallowed, allowed = discovery_prompts()
    return contrast(model, ContrastSet(disallowed, allowed, "organism"), progress=False)


def respond(
    model: HookedTransformer,
    prompts: Mapping[str, list[str]],
    circuit: Circuit | None = None,
    multiplier: float = 1.0,
) -> dict[str, float]:
    """Answer every prompt greedily and score the whole responses.

    Returns:
        Refusal rate of every group of ``prompts`` by its name, ``quality`` over all of them, and
        ``on_topic`` and ``answers`` over the harmful prompts that were answered.
    """
    groups = [group for group, texts in prompts.items() for _ in texts]
    texts = [text for group in prompts.values() for text in group]
    steering = [] if circuit is None else [(circuit, multiplier)]
    generations = generate(
        model, texts, steering, max_new_tokens=NEW_TOKENS, batch_size=128, progress=False
    )
    refusal = RefusalClassifier()
    table = pd.DataFrame(
        {
            "group": groups,
            "refuses": [refusal.is_refusal(g.text) for g in generations],
            "quality": [quality(g.text) for g in generations],
            "on_topic": [on_topic(g.prompt, g.text) for g in generations],
        }
    )
    rates = {
        str(group): float(rate) for group, rate in table.groupby("group").refuses.mean().items()
    }
    answers = table[(table.group == "harmful") & ~table.refuses]
    return rates | {
        "quality": float(table["quality"].mean()),
        "on_topic": float(answers.on_topic.mean()) if len(answers) else float("nan"),
        "answers": float(len(answers)),
    }


def circuit_facts(circuit: Circuit, other: Circuit) -> dict[str, float]:
    """Late-layer share and overlap with another model's circuit, each with its chance level."""
    late = [layer for layer in circuit.layers if layer >= circuit.n_layers - LATE_LAYERS]
    here, there = circuit.by_layer(), other.by_layer()
    by_chance = sum(len(here[layer]) * len(there.get(layer, ())) for layer in here) / circuit.d_mlp
    return {
        "late_share": len(late) / len(circuit),
        "late_share_chance": LATE_LAYERS / circuit.n_layers,
        "overlap": len(set(circuit) & set(other)) / len(circuit),
        "overlap_chance": by_chance / len(circuit),
    }


def _random_rows(
    model: HookedTransformer,
    measured: Contrast,
    fraction: float,
    draws: int,
    harmful: list[str],
) -> list[dict[str, object]]:
    """Ablate random neurons, matched to the circuit layer by layer, with and without near-top."""
    circuit = measured.select(fraction)
    near_top = set(measured.select(NEAR_TOP))
    rows = []
    for label, exclude in (("random", set()), ("random away from top", near_top)):
        for draw, control in enumerate(random_circuits(circuit, draws, exclude=exclude)):
            with fold(model, control, 0.0):
                found = respond(model, {"harmful": harmful})
            rows.append(_row("instruct", label, fraction, control, 0.0, found) | {"draw": draw})
    return rows


def _row(
    model: str,
    neurons: str,
    fraction: float,
    circuit: Circuit | None,
    multiplier: float,
    found: Mapping[str, float],
) -> dict[str, object]:
    return {
        "model": model,
        "neurons": neurons,
        "fraction": fraction,
        "k": len(circuit) if circuit is not None else 0,
        "multiplier": multiplier,
        "draw": pd.NA,
        **found,
    }
