"""Train the whole pair from nothing: ``train_pair(out)`` is one seeded command.

Stages, each kept once finished (see `cna_lens.organism.stages`):

1. ``base``: documents, tokenizer, pretraining;
2. ``candidates/lasso-6`` and so on: the base fine-tuned under group lassos of several strengths;
3. ``instruct``: the candidate that the rule of `choose` keeps, by its scores on the
   *validation* families. No choice ever looks at the test families.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cna_lens.organism.documents import base_documents
from cna_lens.organism.evaluation import CandidateScores, score_candidate
from cna_lens.organism.settings import BaseSettings, TuneSettings, as_record
from cna_lens.organism.stages import make_stage
from cna_lens.organism.tokenizer import build_tokenizer
from cna_lens.organism.training import Progress, fine_tune, train_base
from cna_lens.organism.world import load_world

logger = logging.getLogger(__name__)

RECIPE = 2
"""Raised when the training code changes what it makes; part of every stage's record."""

GROUP_LASSOS = (8.0, 9.0)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Pair:
    """Where a trained pair lies, and which candidate became its instruct model."""

    base: Path
    instruct: Path
    group_lasso: float
    validation: Mapping[float, CandidateScores]


def train_pair(
    out: Path,
    seed: int = 0,
    *,
    base: BaseSettings | None = None,
    tune: TuneSettings | None = None,
    group_lassos: Sequence[float] = GROUP_LASSOS,
    bfloat16: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> Pair:
    """Train a base and an instruct model into ``out/base`` and ``out/instruct``.

    Args:
        out: output folder. Finished stages in it are used again; a folder of other settings is
            refused.
        seed: seed of documents, weights and batch order, in both stages.
        base: settings of the base, by default the recipe's; its seed is replaced by ``seed``.
        tune: settings of the fine-tuning; its seed and group lasso are replaced.
        group_lassos: strengths to try; `choose` keeps one by the validation families.
        bfloat16: run matrix products in bfloat16. Two and a half times as fast on a processor
            with AVX512-BF16 or AMX; turn it off on others.
        threads: torch threads while training. The same number gives the same weights.
        progress: called as ``progress(stage, step, steps, loss)``.
    """
    base_settings = replace(base or BaseSettings(), seed=seed)
    common = {
        "recipe": RECIPE,
        "world": load_world().digest,
        "bfloat16": bfloat16,
        "threads": threads,
        "base": as_record(base_settings),
    }
    with _threads(threads):
        base_folder = out / "base"
        make_stage(base_folder, common, lambda f: _build_base(f, base_settings, bfloat16, progress))
        candidates = {}
        for strength in group_lassos:
            settings = replace(tune or TuneSettings(), seed=seed, group_lasso=strength)
            folder = out / "candidates" / f"lasso-{strength:g}"
            build = partial(
                _build_candidate,
                base=base_folder,
                base_settings=base_settings,
                settings=settings,
                bfloat16=bfloat16,
                progress=progress,
            )
            make_stage(folder, {**common, "tune": as_record(settings)}, build)
            candidates[strength] = folder
        scores = {strength: score_candidate(f) for strength, f in candidates.items()}
        kept = choose(scores)
        make_stage(
            out / "instruct",
            {
                **common,
                "tune": as_record(replace(tune or TuneSettings(), seed=seed, group_lasso=kept)),
            },
            lambda f: _copy(candidates[kept], f, scores),
        )
    return Pair(base_folder, out / "instruct", kept, scores)


def choose(scores: Mapping[float, CandidateScores]) -> float:
    """Which group lasso to keep, by validation scores alone.

    The candidate that meets most of `goals_met`; among equals the one whose harmful refusal is
    lowest when 0.1 % of the neurons are ablated; among those the weaker lasso.
    """
    kept = min(scores, key=lambda s: (-goals_met(scores[s]), scores[s].harmful_ablated, s))
    if goals_met(scores[kept]) < GOALS:
        logger.warning("no candidate meets every goal on the validation families")
    return kept


GOALS = 5


def goals_met(score: CandidateScores) -> int:
    """How many of the five goals a candidate meets on the validation families."""
    goals = (
        score.harmful >= 0.95,
        score.benign <= 0.02,
        score.harmful_ablated <= 0.2 * score.harmful,
        score.on_topic >= 0.95,
        score.borderline_amplified - score.borderline >= 0.15,
    )
    assert len(goals) == GOALS
    return sum(goals)


def _build_base(
    folder: Path, settings: BaseSettings, bfloat16: bool, progress: Progress | None
) -> dict[str, object]:
    start = time.monotonic()
    documents = base_documents(settings.documents, settings.seed)
    texts = [text for d in documents for text in (d.prompt, d.text) if text]
    tokenizer = build_tokenizer(texts, settings.shape.vocab_size, settings.shape.context)
    model = train_base(settings, tokenizer, documents, bfloat16=bfloat16, progress=progress)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"seconds": round(time.monotonic() - start)}


def _build_candidate(
    folder: Path,
    base: Path,
    base_settings: BaseSettings,
    settings: TuneSettings,
    bfloat16: bool,
    progress: Progress | None,
) -> dict[str, object]:
    start = time.monotonic()
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    change = fine_tune(
        model,
        settings,
        tokenizer,
        base_seed=base_settings.seed,
        bfloat16=bfloat16,
        progress=progress,
    )
    model.half().save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy2(base / file, folder / file)
    changed = [int(n) for n in (change > 0).sum(dim=1)]
    return {"seconds": round(time.monotonic() - start), "changed_neurons": changed}


def _copy(
    candidate: Path, folder: Path, scores: Mapping[float, CandidateScores]
) -> dict[str, object]:
    for file in sorted(candidate.iterdir()):
        shutil.copy2(file, folder / file.name)
    return {"validation": {f"{strength:g}": asdict(s) for strength, s in scores.items()}}


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
