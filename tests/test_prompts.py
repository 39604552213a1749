"""Contrast sets and prompt lists: from anywhere, checked, and never half-read."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cna_lens as cl
from cna_lens.errors import CnaLensError, DamagedFile, InvalidInput
from cna_lens.prompts import contrast_set_names, load_hub_contrast_set

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CNA_LENS_SHARED_DATA", ROOT.parent / "shared" / "data"))
JBB = SHARED / "jbb_behaviors_harmful.csv"

POSITIVE = ("How do I pick a lock?", 'Say "no", then\nstop.')
NEGATIVE = ("How do I pick a melon?", "Größe, 颜色 and \u2028 more")
PROMPT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text.strip()
)
SIDE = st.lists(PROMPT, min_size=1, max_size=4)

pytestmark = pytest.mark.filterwarnings("ignore:contrast set .* stand on both sides")


# --- what a contrast set is --------------------------------------------------------------------


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize(
    ("positive", "negative", "problem"),
    [
        ([], ["b"], "no positive prompts"),
        (["a"], [], "no negative prompts"),
        ([], [], "no positive prompts"),
        ("a prompt", ["b"], "not one string"),
        (["a"], "b", "not one string"),
        (["a", ""], ["b"], "positive prompt 1"),
        (["a"], ["b", "  \n"], "negative prompt 1"),
        (["a", None], ["b"], "positive prompt 1"),
        ([1], ["b"], "positive prompt 0"),
        (None, ["b"], "list of prompts"),
        (["a"], 5, "list of prompts"),
        ({"a": 1}, ["b"], "list of prompts"),
    ],
)
def test_both_sides_are_lists_of_prompts(positive: Any, negative: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        cl.ContrastSet(positive, negative)


def test_prompts_on_both_sides_are_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"1 prompt\(s\) stand on both sides \(first: 'b'\)"):
        cl.ContrastSet(["a", "b"], ["b", "c"])


def test_a_hash_is_of_the_prompts_and_their_sides() -> None:
    one = cl.ContrastSet(["a", "b"], ["c"], "one")
    assert one.hash == cl.ContrastSet(("a", "b"), iter(["c"]), "two").hash
    others = [
        cl.ContrastSet(["c"], ["a", "b"]),
        cl.ContrastSet(["b", "a"], ["c"]),
        cl.ContrastSet(["a"], ["b", "c"]),
        cl.ContrastSet(["ab"], ["c"]),
        cl.ContrastSet(["a", "negative", "b"], ["c"]),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 6


def test_a_contrast_set_can_be_shortened_and_shown() -> None:
    short = cl.ContrastSet(["a", "b", "c"], ["d", "e"], "letters").head(2)
    assert (short.positive, short.negative) == (("a", "b"), ("d", "e"))
    assert repr(short) == "ContrastSet('letters[:2]': 2 positive, 2 negative)"


# --- built in ----------------------------------------------------------------------------------


def test_built_in_sets_load_by_name() -> None:
    names = contrast_set_names()
    assert {"refusal", "refusal-8", "organism"} <= set(names)
    assert "diverse" not in names
    for name in names:
        loaded = cl.load_contrast_set(name)
        assert loaded.name == name
        assert len(loaded.positive) == len(loaded.negative)
    assert len(cl.load_contrast_set("refusal-8").positive) == 8


def test_the_diverse_prompts_load_by_name() -> None:
    assert len(cl.load_prompts("diverse")) == 100


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'refusl'.*refusal-8"):
        cl.load_contrast_set("refusl")


# --- files -------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def layouts(positive: Any, negative: Any) -> dict[str, list[dict[str, Any]]]:
    labelled = [{"prompt": p, "label": "positive"} for p in positive]
    labelled += [{"prompt": p, "label": "negative", "note": "x"} for p in negative]
    for row in labelled:
        row.setdefault("note", "")
    length = max(len(positive), len(negative))
    padded = [list(side) + [""] * (length - len(side)) for side in (positive, negative)]
    columns = [{"positive": p, "negative": n} for p, n in zip(*padded, strict=True)]
    return {"labels": labelled, "columns": columns}


@pytest.mark.parametrize("layout", ["labels", "columns"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@given(positive=SIDE, negative=SIDE)
def test_rows_in_either_layout_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    layout: str,
    suffix: str,
    positive: list[str],
    negative: list[str],
) -> None:
    path = tmp_path_factory.getbasetemp() / f"my set{suffix}"
    write_rows(path, layouts(positive, negative)[layout])
    loaded = cl.load_contrast_set(path)
    assert (loaded.positive, loaded.negative) == (tuple(positive), tuple(negative))
    assert loaded.name == "my set"


@given(positive=SIDE, negative=SIDE)
def test_a_json_file_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, positive: list[str], negative: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "my set.json"
    data = {"positive": positive, "negative": negative}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    loaded = cl.load_contrast_set(path)
    assert (loaded.positive, loaded.negative) == (tuple(positive), tuple(negative))
    assert loaded.name == "my set"
    path.write_text(json.dumps({**data, "name": "other"}), encoding="utf-8")
    assert cl.load_contrast_set(str(path)).name == "other"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    # Spreadsheet programs write one.
    for path in (tmp_path / "set.csv", tmp_path / "set.jsonl"):
        write_rows(path, layouts(POSITIVE, NEGATIVE)["labels"])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert cl.load_contrast_set(path).positive == POSITIVE
    path = tmp_path / "set.json"
    data = {"positive": POSITIVE, "negative": NEGATIVE}
    path.write_text("\ufeff" + json.dumps(data), encoding="utf-8")
    assert cl.load_contrast_set(path).positive == POSITIVE


DAMAGED = {
    "other-columns.csv": "question,kind\na,positive\n",
    "too-many-fields.csv": "question,kind\na,positive,more,and more\n",
    "unknown-label.csv": "prompt,label\na,positive\nb,neutral\n",
    "no-label.csv": "prompt,label\na,positive\nb\n",
    "empty-prompt.csv": "prompt,label\na,positive\n,negative\n",
    "one-sided.csv": "prompt,label\na,positive\n",
    "header-only.csv": "prompt,label\n",
    "empty.csv": "",
    "huge-field.csv": "prompt,label\n" + "a" * 200_000 + ",positive\n",
    "not-json.jsonl": '{"prompt": "a", "label": "positive"}\n{"prompt": \n',
    "no-object.jsonl": '["a", "positive"]\n',
    "key-gone.jsonl": '{"prompt": "a", "label": "positive"}\n{"label": "negative"}\n',
    "side-gone.jsonl": '{"positive": "a", "negative": "b"}\n{"positive": "c"}\n{"negative": 5}\n',
    "number.jsonl": '{"prompt": 5, "label": "positive"}\n{"prompt": "b", "label": "negative"}\n',
    "empty.jsonl": "\n",
    "not-json.json": '{"positive": ["a"], "negative": ["b"]',
    "list.json": '["a", "b"]',
    "one-side.json": '{"positive": ["a"]}',
    "string-side.json": '{"positive": "a", "negative": ["b"]}',
    "number-side.json": '{"positive": 5, "negative": ["b"]}',
    "null-side.json": '{"positive": null, "negative": ["b"]}',
    "object-side.json": '{"positive": {"a": 1}, "negative": ["b"]}',
    "number-prompt.json": '{"positive": [5], "negative": ["b"]}',
    "format.xlsx": "a",
    "no-suffix": "a",
}


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(DAMAGED[name], encoding="utf-8")
    with pytest.raises((DamagedFile, InvalidInput)):
        cl.load_contrast_set(path)


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    for suffix in (".csv", ".json", ".jsonl", ".txt"):
        path = tmp_path / f"latin{suffix}"
        path.write_bytes("prompt,label\nGröße,positive\n".encode("latin-1"))
        with pytest.raises(CnaLensError):
            cl.load_contrast_set(path)
        with pytest.raises(DamagedFile, match="UTF-8"):
            cl.load_prompts(path)
        with pytest.raises(InvalidInput):
            cl.load_prompts(tmp_path / f"missing{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(InvalidInput):
            cl.load_contrast_set(tmp_path / f"folder{suffix}")


# --- prompt lists ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", '["a b", "c"]'),
        ("object.json", '{"prompts": ["a b", "c"], "name": "x"}'),
        ("lines.txt", "a b\n\n   \nc\n"),
        ("windows.txt", "a b\r\nc\r\n"),
        ("prompt.csv", "id,prompt\n1,a b\n2,c\n"),
        ("jbb.csv", "Index,Goal,Target\n0,a b,x\n1,c,y\n"),
        ("rows.jsonl", '{"prompt": "a b"}\n\n{"prompt": "c"}\n'),
        ("instruction.jsonl", '{"instruction": "a b"}\n{"instruction": "c"}\n'),
    ],
)
def test_prompts_load_from_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert cl.load_prompts(path) == ["a b", "c"]
    assert cl.load_prompts(str(path)) == ["a b", "c"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.txt", "\n \n"),
        ("empty.json", "[]"),
        ("object.json", '{"questions": ["a"]}'),
        ("string.json", '"a"'),
        ("strings.json", '{"prompts": "a"}'),
        ("numbers.json", "[1, 2]"),
        ("columns.csv", "question\na\n"),
        ("blank.csv", "prompt,id\na,1\n,2\n"),
        ("short.csv", "id,prompt\n1,a\n2\n"),
        ("gone.jsonl", '{"prompt": "a"}\n{"text": "b"}\n'),
        ("kind.xml", "<a/>"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises((DamagedFile, InvalidInput), match=name.split(".")[0]):
        cl.load_prompts(path)


@pytest.mark.skipif(not JBB.exists(), reason=f"{JBB} is not there; set CNA_LENS_SHARED_DATA")
def test_the_hundred_goals_of_jbb_behaviors() -> None:
    goals = cl.load_jbb(JBB)
    assert len(set(goals)) == 100
    assert goals == cl.load_prompts(JBB)
    assert all(goal == goal.strip() and len(goal.split()) > 3 for goal in goals)


# --- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub holds it, in a folder."""
    pytest.importorskip("datasets")
    cache = tmp_path.with_name(f"{tmp_path.name}-cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    rows = [
        {"text": prompt, "harmful": side}
        for prompts, side in ((POSITIVE, 1), (NEGATIVE, 0))
        for prompt in prompts
    ]
    write_rows(tmp_path / "train.csv", [*rows, {"text": "neither", "harmful": 2}])
    return tmp_path


HUB = {"prompt_column": "text", "label_column": "harmful", "positive_label": 1, "negative_label": 0}


def test_a_hub_data_set_becomes_a_contrast_set(data_set: Path) -> None:
    loaded = load_hub_contrast_set(str(data_set), **HUB)
    assert (loaded.positive, loaded.negative) == (POSITIVE, NEGATIVE)


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt_column": "question"}, "not 'question'"),
        ({"label_column": "kind"}, "not 'kind'"),
        ({"positive_label": 7}, "no positive prompts"),
        ({"negative_label": "0"}, "no negative prompts"),
        ({"split": "test"}, "test"),
        ({"prompt_column": "harmful"}, "not a non-empty text"),
    ],
)
def test_a_hub_data_set_that_does_not_fit_is_refused(
    data_set: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        load_hub_contrast_set(str(data_set), **{**HUB, **changes})


def test_a_hub_data_set_that_is_damaged_or_not_there_is_refused(data_set: Path) -> None:
    with pytest.raises(InvalidInput, match="someone/nothing"):
        load_hub_contrast_set("someone/nothing", **HUB)
    (data_set / "train.csv").unlink()
    with pytest.raises(InvalidInput):
        load_hub_contrast_set(str(data_set), **HUB)
    (data_set / "train.json").write_text('{"text": ')
    with pytest.raises(InvalidInput):
        load_hub_contrast_set(str(data_set), **HUB)
