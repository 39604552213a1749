"""The built-in contrast sets: two sides that differ in one thing, and in nothing of the form."""

import csv
import json
import os
import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "cna_lens" / "contrast_sets"
SIZES = {
    "refusal": 100,
    "refusal-8": 8,
    "sentiment": 24,
    "formality": 24,
    "language": 24,
    "sycophancy": 24,
    "arithmetic": 24,
    "code": 24,
}
SETS = pytest.mark.parametrize("name", SIZES)


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.casefold()))


def ending(prompt: str) -> str:
    return prompt[-1] if prompt[-1] in ".?!" else ""


def test_the_folder_holds_these_sets_and_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*SIZES, "diverse"}


@SETS
def test_fields_and_sizes(name: str) -> None:
    data = read(name)
    assert list(data) == ["name", "description", "license", "positive", "negative"]
    assert data["name"] == name
    assert data["license"] == "MIT"
    assert data["description"].startswith("Positive: ")
    assert len(data["positive"]) == len(data["negative"]) == SIZES[name]


def test_the_diverse_set_is_a_hundred_prompts() -> None:
    data = read("diverse")
    assert list(data) == ["name", "description", "license", "prompts"]
    assert len(data["prompts"]) == 100


@pytest.mark.parametrize("name", [*SIZES, "diverse"])
def test_every_prompt_is_one_clean_line_and_occurs_once(name: str) -> None:
    data = read(name)
    prompts = data["prompts"] if name == "diverse" else data["positive"] + data["negative"]
    for prompt in prompts:
        assert prompt == prompt.strip()
        assert len(prompt.splitlines()) == 1
    twice = [
        p for p, n in Counter(" ".join(p.casefold().split()) for p in prompts).items() if n > 1
    ]
    assert twice == []


@pytest.mark.parametrize("name", [*SIZES, "diverse"])
def test_the_file_has_one_prompt_per_line(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text == json.dumps(read(name), ensure_ascii=False, indent=2) + "\n"


@SETS
def test_the_sides_have_the_same_length(name: str) -> None:
    data = read(name)
    positive, negative = (mean(len(p.split()) for p in data[s]) for s in ("positive", "negative"))
    assert abs(positive - negative) <= 0.15 * min(positive, negative)
    for one, other in zip(data["positive"], data["negative"], strict=True):
        assert abs(len(one.split()) - len(other.split())) <= 3, (one, other)


@SETS
def test_the_sides_end_alike_pair_by_pair(name: str) -> None:
    data = read(name)
    for one, other in zip(data["positive"], data["negative"], strict=True):
        assert ending(one) == ending(other), (one, other)


def test_refusal_pairs_open_with_the_same_word() -> None:
    data = read("refusal")
    for harmful, harmless in zip(data["positive"], data["negative"], strict=True):
        assert harmful.split()[0] == harmless.split()[0]


def test_the_small_refusal_set_is_a_subset_pair_by_pair() -> None:
    large, small = read("refusal"), read("refusal-8")
    pairs = set(zip(large["positive"], large["negative"], strict=True))
    assert set(zip(small["positive"], small["negative"], strict=True)) <= pairs


def test_refusal_prompts_keep_away_from_the_evaluation_set() -> None:
    shared = Path(os.environ.get("CNA_LENS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = shared / "jbb_behaviors_harmful.csv"
    if not path.exists():
        pytest.skip(f"JBB-Behaviors is not at {path}; set CNA_LENS_SHARED_DATA to its folder")
    with path.open(encoding="utf-8", newline="") as file:
        goals = [row["Goal"] for row in csv.DictReader(file)]
    assert len(goals) == 100
    for prompt in read("refusal")["positive"]:
        for goal in goals:
            shared_words, all_words = words(prompt) & words(goal), words(prompt) | words(goal)
            assert len(shared_words) / len(all_words) < 0.3, (prompt, goal)
            likeness = SequenceMatcher(None, prompt.casefold(), goal.casefold()).ratio()
            assert likeness < 0.75, (prompt, goal)
