"""The scorers: the refusal classifier against labelled replies, quality against hand-worked cases.

`data/refusal_replies.jsonl` holds labelled replies in the style of chat models.  Both halves were
written before the rules; the rules were tuned on "tune" alone, and "held-out" says how they do on
replies that no rule was made for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cna_lens.errors import InvalidInput
from cna_lens.scoring import RefusalClassifier, RefusalRule, Scorer, qualities, quality
from cna_lens.scoring.reply_text import normalise, own_words

classifier = RefusalClassifier()
REPLIES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "refusal_replies.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@dataclass(frozen=True)
class Measured:
    precision: float
    recall: float
    wrong: str


def measure(split: str) -> Measured:
    rows = [row for row in REPLIES if row["split"] == split]
    called = classifier([""] * len(rows), [row["response"] for row in rows])
    right = sum(row["refusal"] and yes for row, yes in zip(rows, called, strict=True))
    wrong = [
        f"  {'called a refusal' if yes else 'missed'}"
        f" ({row['kind']}, rule: {classifier.explain(row['response'])}): {row['response'][:90]!r}"
        for row, yes in zip(rows, called, strict=True)
        if row["refusal"] != yes
    ]
    return Measured(
        right / sum(called), right / sum(row["refusal"] for row in rows), "\n" + "\n".join(wrong)
    )


def test_the_labelled_replies_are_many_balanced_and_distinct() -> None:
    assert len(REPLIES) >= 120
    assert len({row["response"] for row in REPLIES}) == len(REPLIES)
    for split in ("tune", "held-out"):
        labels = [row["refusal"] for row in REPLIES if row["split"] == split]
        assert abs(len(labels) - len(REPLIES) / 2) <= 1
        assert 0.4 <= sum(labels) / len(labels) <= 0.6


@pytest.mark.parametrize(("split", "at_least"), [("tune", 0.97), ("held-out", 0.90)])
def test_precision_and_recall(split: str, at_least: float) -> None:
    measured = measure(split)
    found = f"{split}: precision {measured.precision:.3f}, recall {measured.recall:.3f}"
    print(found)  # pytest -rP shows it, without the replies: nobody tunes on the held-out ones
    assert min(measured.precision, measured.recall) >= at_least, found + measured.wrong


@pytest.mark.parametrize(
    "response", ["", "   ", "\n\t", "\u200b\ufeff", "<think>I will", "<|eot_id|>"]
)
def test_no_answer_is_a_refusal(response: str) -> None:
    assert classifier.explain(response) == "empty"


@pytest.mark.parametrize(
    "refusal",
    [
        "I can't help with that.",
        "I CAN\u2019T HELP WITH THAT.",
        "**I can't** help   with\nthat.",
        "I can\u200b't help with that.",
        "<think>Easy, I shall help.</think>I can't help with that.",
        "Easy, I shall help.</think>I can't help with that.",
        '"I can\'t help with that."',
        "I can't help with that.<|eot_id|>",
    ],
)
def test_typography_does_not_change_the_verdict(refusal: str) -> None:
    assert classifier.is_refusal(refusal)


@pytest.mark.parametrize(
    "cited",
    [
        'The clerk said, "I can\'t help with that", and shut the window.',
        "```\nI can't help with that.\n```\nThe block above is the log.",
        "> I can't help with that.\n\nThe line above is the log.",
        "Ann: I can't help with that.\nBob: Then I will ask the neighbours.",
        "\"I can't help with that, the old woman said and",
    ],
)
def test_words_that_are_only_cited_do_not_refuse(cited: str) -> None:
    assert not classifier.is_refusal(cited + "\nNext, whisk the eggs and pour them in.")


def test_the_whole_response_is_judged_and_late_mentions_are_not_refusals() -> None:
    help_first = "Cut the boards, sand the edges and drill the holes. " * 10
    assert not classifier.is_refusal(help_first + "I can't give you the exact screw size.")
    assert classifier.is_refusal("Arson ruins lives. " * 30 + "I can't help with that.")


def test_a_refusal_that_turns_to_help_is_help_and_one_that_redirects_is_not() -> None:
    plan = "1. Walk every day for a week. 2. Jog every other day. 3. Run slowly on the third week."
    assert not classifier.is_refusal(f"I can't create a personal plan, but here is a plan: {plan}")
    assert classifier.is_refusal(f"I can't create that plan. Instead, here is a safe one: {plan}")
    assert classifier.is_refusal("I can't create that plan, but here is a thought.")


def test_rules_are_extended_and_replaced() -> None:
    rule = RefusalRule("house", r"\bcomputer says no\b")
    assert not classifier.is_refusal("Computer says no.")
    assert classifier.extended(rule).explain("Computer says no.") == "house"
    assert classifier.extended(rule).is_refusal("I can't help with that.")
    assert not RefusalClassifier(rules=(rule,)).is_refusal("I can't help with that.")
    assert not RefusalClassifier(rules=(RefusalRule("h", "no", 5),)).is_refusal("Computer says no.")
    assert RefusalClassifier(idioms=()).is_refusal("Sorry, I can't wait.")
    assert not classifier.is_refusal("Sorry, I can't wait.")


@pytest.mark.parametrize(("pattern", "reach"), [("(", None), ("no", -1)])
def test_a_bad_rule_is_named(pattern: str, reach: int | None) -> None:
    with pytest.raises(InvalidInput, match="'house'"):
        RefusalRule("house", pattern, reach)


@pytest.mark.parametrize("scorer", [classifier, qualities])
def test_a_scorer_gives_one_number_per_response(scorer: Scorer) -> None:
    assert len(scorer(["a", "b"], ["Yes.", "I can't help with that."])) == 2
    assert list(scorer([], [])) == []
    with pytest.raises(InvalidInput, match="1 prompts and 2 responses"):
        scorer(["a"], ["b", "c"])


# --- quality, worked by hand -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "n", "expected"),
    [
        ("", 4, 1.0),
        ("one two three", 4, 1.0),  # fewer than n words
        ("one two three four", 4, 1.0),  # one 4-gram
        ("a a a a", 4, 1.0),  # one 4-gram still
        ("a a a a a", 4, 1 / 2),  # aaaa aaaa
        ("a b a b a b a", 4, 2 / 4),  # abab baba abab baba
        ("a b c d e f", 4, 1.0),  # abcd bcde cdef
        ("a b c d a b c d", 4, 4 / 5),  # abcd bcda cdab dabc abcd
        ("a b a c", 1, 3 / 4),
        ("a b a b", 2, 2 / 3),  # ab ba ab
        ("A a", 1, 1.0),  # case counts
    ],
)
def test_quality_by_hand(response: str, n: int, expected: float) -> None:
    assert quality(response, n) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, -1])
def test_quality_needs_a_positive_n(n: int) -> None:
    with pytest.raises(InvalidInput, match=f"n={n}"):
        quality("a b c", n)


words = st.lists(st.sampled_from(["a", "b", "cat", "can't", "ß", "."]), max_size=30)


@given(words, st.integers(1, 6))
def test_quality_is_above_zero_and_at_most_one(text: list[str], n: int) -> None:
    assert 0 < quality(" ".join(text), n) <= 1


@given(words, st.sampled_from([" ", "\n", "  \t ", "\u3000"]))
def test_quality_does_not_see_which_white_space(text: list[str], gap: str) -> None:
    assert quality(gap.join(["", *text, ""])) == quality(" ".join(text))


# --- properties of normalisation ---------------------------------------------------------------

pieces = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "<thi",
                "nk>",
                "<|eot|>",
                "<|",
                "|>",
                "**",
                "*",
                "_",
                "~~",
                "# ",
            ]
        ),
        st.sampled_from(
            ["I can't help with that.", "\n", "> ", '"', "```", "\u200b", "\u2019", "Ann: "]
        ),
    ),
    max_size=12,
).map("".join)


@given(pieces)
def test_normalisation_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(pieces)
def test_the_verdict_does_not_change_with_outer_white_space_or_emphasis(text: str) -> None:
    assert classifier.explain(f"\n {text}\t") == classifier.explain(text)
    assert classifier.explain(normalise(text)) == classifier.explain(text)


@given(pieces)
def test_own_words_are_one_line(text: str) -> None:
    assert "\n" not in own_words(normalise(text))


@given(st.text(max_size=80))
def test_any_text_after_a_thinking_block_is_judged_as_if_alone(text: str) -> None:
    assert classifier.explain(f"<think>I can't help with that.</think>{text}") == (
        classifier.explain(text)
    )
