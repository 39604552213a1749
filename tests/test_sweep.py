"""Sweeps: each prompt under each condition once, matched controls, a table that comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from reference import random_circuit, slow_decode
from transformer_lens import HookedTransformer

import cna_lens as cl
from cna_lens.errors import DamagedFile, InvalidInput, OutputError
from cna_lens.interventions import ScaleNeurons, random_circuits
from cna_lens.models import describe, encode, info
from cna_lens.provenance import Provenance
from cna_lens.statistics import bootstrap_mean, wilson

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

GROUPS = {"harmful": ["a b c", "d e"], "benign": ["f"]}
N_NEW = 4
COLUMNS = [
    "group",
    "prompt_id",
    "prompt",
    "intervention",
    "draw",
    "fraction",
    "neurons",
    "multiplier",
    "response",
    "refused",
    "quality",
    "prompt_tokens",
    "response_tokens",
    "finished",
]


@pytest.fixture(scope="module")
def found(model: HookedTransformer) -> cl.Contrast:
    contrast_set = cl.ContrastSet(["a b", "c d e", "f"], ["g", "h i j", "k l"], "letters")
    return cl.contrast(model, contrast_set, universal_prompts=["m", "n o"])


@pytest.fixture(scope="module")
def grid(model: HookedTransformer, found: cl.Contrast) -> cl.Sweep:
    return cl.sweep(
        model,
        found,
        GROUPS,
        (0.0, 1.0, 3.0),
        fractions=(0.05, 0.2),
        random_draws=2,
        max_new_tokens=N_NEW,
    )


@contextmanager
def counting_prompts(model: HookedTransformer) -> Iterator[list[int]]:
    """How many prompts are run through the model, in passes of more than one position."""
    rows: list[int] = []

    def count(embedding: torch.Tensor, hook: Any) -> None:
        if embedding.shape[1] > 1:
            rows.append(len(embedding))

    with model.hooks(fwd_hooks=[("hook_embed", count)]):
        yield rows


# --- the table ---------------------------------------------------------------------------------


def test_every_prompt_meets_every_condition_once(grid: cl.Sweep, found: cl.Contrast) -> None:
    assert list(grid.table.columns) == COLUMNS
    # 3 prompts x 2 fractions x (1 circuit + 2 random draws) x 3 multipliers
    assert len(grid.table) == 3 * 2 * 3 * 3
    key = ["group", "prompt_id", "intervention", "draw", "fraction", "multiplier"]
    assert not grid.table.duplicated(key).any()
    assert set(grid.table["fraction"]) == {found.select(f).fraction for f in (0.05, 0.2)}
    circuits = grid.table[grid.table["intervention"] == "circuit"]
    assert set(circuits["draw"]) == {-1}
    controls = grid.table[grid.table["intervention"] == "random"]
    assert set(controls["draw"]) == {0, 1}


def test_responses_are_those_of_each_condition_alone(
    model: HookedTransformer, grid: cl.Sweep, found: cl.Contrast
) -> None:
    stop = info(model).stop_tokens
    tokenizer = info(model).tokenizer
    assert tokenizer is not None
    circuits = {}
    for fraction in (0.05, 0.2):
        circuit = found.select(fraction)
        circuits[circuit.fraction, -1] = circuit
        for draw, control in enumerate(random_circuits(circuit, 2)):
            circuits[circuit.fraction, draw] = control
    for row in grid.table.itertuples():
        circuit = circuits[row.fraction, row.draw]
        ids = encode(model, [row.prompt])[0]
        tokens = slow_decode(model, ids, N_NEW, [(circuit, row.multiplier, "all")], stop)
        assert row.response == tokenizer.decode(tokens, skip_special_tokens=True)
        assert (row.prompt_tokens, row.response_tokens) == (len(ids), len(tokens))
        assert row.neurons == len(circuit)


def test_the_neutral_multiplier_is_decoded_once_for_all(
    model: HookedTransformer, found: cl.Contrast
) -> None:
    options: dict[str, Any] = {"random_draws": 2, "max_new_tokens": N_NEW}
    with counting_prompts(model) as rows:
        made = cl.sweep(model, found, GROUPS, (0.0, 1.0, 3.0), fractions=(0.05, 0.2), **options)
    # 3 prompts: 2 other multipliers of 2 circuits and 4 controls, and the baseline.
    assert sum(rows) == 3 * (2 * 6 + 1)
    baseline = made.table[made.table["multiplier"] == 1.0]
    assert baseline.groupby(["group", "prompt_id"])["response"].nunique().eq(1).all()
    plain = cl.generate(model, ["a b c", "d e", "f"], max_new_tokens=N_NEW)
    assert list(baseline["response"][:3]) == [generation.text for generation in plain]


def test_a_list_of_prompts_is_one_group(model: HookedTransformer, found: cl.Contrast) -> None:
    made = cl.sweep(model, found.select(k=5), ["a", "b"], (0.0, 0.0, 1.0), max_new_tokens=1)
    assert set(made.table["group"]) == {"all"}
    assert made.table["multiplier"].tolist() == [0.0, 0.0, 1.0, 1.0]  # given twice, run once
    assert made.table["prompt"].tolist() == ["a", "b"] * 2


def test_further_scorers_get_columns_of_their_own(model: HookedTransformer) -> None:
    circuit = random_circuit(model, 5)
    made = cl.sweep(
        model,
        circuit,
        ["a b", "c"],
        (0.0,),
        max_new_tokens=2,
        scorers={"length": lambda prompts, responses: [len(p) for p in prompts]},
    )
    assert made.table["length"].tolist() == [3, 1]
    assert {"refused", "quality"} <= set(made.table.columns)


@dataclass(frozen=True)
class Shift:
    """An intervention that a user might write: adds the strength to the last residual stream."""

    name = "shift"
    identity = "shift"
    neutral = 0.0

    def check_fits(self, model: HookedTransformer) -> None:
        pass

    def hooks(self, strengths: torch.Tensor, prompt_length: int | None = None) -> Any:
        def add(residual: torch.Tensor, hook: Any) -> torch.Tensor:
            residual = residual.clone()
            residual[..., 0] += strengths[:, None]
            return residual

        return [("blocks.2.hook_resid_post", add)]


def test_any_intervention_can_be_swept(model: HookedTransformer) -> None:
    made = cl.sweep(model, Shift(), ["a b", "c"], (-30.0, 0.0, 30.0), max_new_tokens=3)
    assert set(made.table["intervention"]) == {"shift"}
    by_strength = made.table.groupby("multiplier")["response"].apply(tuple)
    plain = cl.generate(model, ["a b", "c"], max_new_tokens=3)
    assert by_strength[0.0] == tuple(generation.text for generation in plain)
    assert by_strength[-30.0] != by_strength[30.0]


def test_a_sweep_says_where_it_came_from(
    model: HookedTransformer, grid: cl.Sweep, found: cl.Contrast
) -> None:
    origin = grid.provenance
    assert (origin.model, origin.weights) == (info(model).name, describe(model).weights)
    assert (origin.contrast_set, origin.contrast_set_hash) == (
        "letters",
        found.provenance.contrast_set_hash,
    )
    assert origin.settings["max_new_tokens"] == N_NEW
    assert origin.settings["positions"] == "all"
    assert origin.settings["discovered_on"]["model"] == info(model).name
    assert origin.seed == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"multipliers": []}, "multipliers"),
        ({"multipliers": [0.0, float("nan")]}, "multipliers"),
        ({"multipliers": [float("inf")]}, "multipliers"),
        ({"prompts": []}, "nothing to run"),
        ({"prompts": {"harmful": []}}, "nothing to run"),
        ({"fractions": (0.1,)}, "fractions need a Contrast"),
    ],
)
def test_a_sweep_of_nothing_is_refused(
    llama: HookedTransformer, changes: dict[str, Any], problem: str
) -> None:
    arguments = {"what": random_circuit(llama, 3), "prompts": ["a"], "max_new_tokens": 1}
    with pytest.raises(InvalidInput, match=problem):
        cl.sweep(llama, **{**arguments, **changes})


# --- the summary -------------------------------------------------------------------------------


def made_up(**columns: Any) -> cl.Sweep:
    """Two conditions over four prompts, and two random draws over two."""
    base = {"group": "all", "fraction": 0.001, "neurons": 7, "multiplier": 0.0}

    def rows(what: str, draw: int, refused: list[bool], quality: list[float], **other: Any) -> Any:
        return [
            {
                "prompt_id": i,
                "prompt": f"p{i}",
                "intervention": what,
                "draw": draw,
                "response": "x",
                "refused": refused[i],
                "quality": quality[i],
                "prompt_tokens": 3,
                "response_tokens": 10 * i,
                "finished": i == 0,
                **base,
                **other,
            }
            for i in range(len(refused))
        ]

    table = pd.DataFrame(
        [
            *rows("circuit", -1, [True, False, False, False], [1.0, 0.5, 1.0, 0.5]),
            *rows("circuit", -1, [True] * 4, [1.0] * 4, multiplier=1.0),
            *rows("random", 0, [True, True], [1.0, 0.8]),
            *rows("random", 1, [True, False], [0.6, 0.6]),
        ]
    )
    for name, values in columns.items():
        table[name] = values
    return cl.Sweep(table[COLUMNS], Provenance(model="m", contrast_set="made up"))


def test_the_summary_is_what_a_hand_computes() -> None:
    summary = made_up().summary().set_index(["intervention", "draw", "multiplier"])
    ablated = summary.loc[("circuit", -1, 0.0)]
    assert (ablated["n"], ablated["refusal_rate"]) == (4, 0.25)
    assert (ablated["refusal_low"], ablated["refusal_high"]) == wilson(1, 4)[1:]
    # Wilson 95 %, 1 of 4, z^2 = 3.8415: centre (1 + 1.9207) / 7.8415 = 0.3725,
    # half width 1.96 / 7.8415 * sqrt(1 * 3 / 4 + 0.9604) = 0.3269.
    assert ablated["refusal_low"] == pytest.approx(0.0456, abs=2e-4)
    assert ablated["refusal_high"] == pytest.approx(0.6994, abs=2e-4)
    assert ablated["quality"] == 0.75
    assert (ablated["quality_low"], ablated["quality_high"]) == bootstrap_mean([1, 0.5, 1, 0.5])[1:]
    assert ablated["response_tokens"] == 15.0  # (0 + 10 + 20 + 30) / 4
    assert ablated["finished"] == 0.25
    baseline = summary.loc[("circuit", -1, 1.0)]
    assert (baseline["refusal_rate"], baseline["refusal_high"]) == (1.0, 1.0)
    assert baseline["quality_low"] == baseline["quality_high"] == 1.0
    assert list(summary.index) == [
        ("circuit", -1, 0.0),
        ("circuit", -1, 1.0),
        ("random", 0, 0.0),
        ("random", 1, 0.0),
    ]


def test_controls_are_summed_up_over_their_draws() -> None:
    controls = made_up().controls()
    assert len(controls) == 1
    row = controls.iloc[0]
    assert (row["draws"], row["neurons"], row["multiplier"]) == (2, 7, 0.0)
    # Draw 0 refuses 2 of 2, draw 1 refuses 1 of 2; their qualities are 0.9 and 0.6.
    assert (row["refusal_mean"], row["refusal_min"], row["refusal_max"]) == (0.75, 0.5, 1.0)
    assert row["quality_mean"] == pytest.approx(0.75)
    assert "circuit" in made_up()._repr_html_()
    assert "random" not in made_up()._repr_html_()


# --- files -------------------------------------------------------------------------------------


def assert_equal(one: cl.Sweep, other: cl.Sweep) -> None:
    assert_frame_equal(one.table, other.table)
    assert one.provenance == other.provenance
    assert_frame_equal(one.summary(), other.summary())


def test_a_sweep_comes_back_equal(grid: cl.Sweep, tmp_path: Path) -> None:
    assert_equal(cl.Sweep.load(grid.save(tmp_path / "deep" / "run")), grid)
    files = {"responses.csv", "summary.csv", "controls.csv", "provenance.json"}
    assert {path.name for path in (tmp_path / "deep" / "run").iterdir()} == files


AWKWARD = [
    [""] * 4,
    ["", "NA", "None", "nan"],
    ["1", "2", "3", "4"],
    ["True", "False", "True", "False"],
    ["1e5", "-0", "0x10", "007"],
    ['"', '""', "'", '","'],
    ["a,b", "a;b", "a\tb", "a\\b"],
    ["line\nend", "line\r\nend", "line\rend", "\n"],
    [" lead", "trail ", "\ufeffmark", "\u2028"],
    ["=1+1", "#", "Größe", "颜色🙂"],
]


@pytest.mark.parametrize("texts", AWKWARD, ids=repr)
def test_awkward_responses_come_back_as_they_were(texts: list[str], tmp_path: Path) -> None:
    made = made_up(response=texts * 3, prompt=texts * 3, group="1")
    assert_equal(cl.Sweep.load(made.save(tmp_path)), made)


def test_a_damaged_sweep_is_refused(tmp_path: Path) -> None:
    def saved() -> Path:
        return made_up().save(tmp_path / "run")

    with pytest.raises(InvalidInput):
        cl.Sweep.load(tmp_path / "missing")
    (saved() / "provenance.json").unlink()
    with pytest.raises(DamagedFile, match=r"provenance\.json"):
        cl.Sweep.load(tmp_path / "run")
    for name, text in (
        ("provenance.json", "{"),
        ("provenance.json", '{"weather": 1}'),
        ("provenance.json", "[1]"),
        ("responses.csv", ""),
        ("responses.csv", "prompt,response\na,b\n"),
        ("responses.csv", '"a'),
    ):
        (saved() / name).write_text(text)
        with pytest.raises(DamagedFile, match="run"):
            cl.Sweep.load(tmp_path / "run")


def test_where_nothing_can_be_written_the_error_is_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        made_up().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


# --- going on after a kill ---------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [None, cl.Sampling(seed=1)])
def test_a_killed_sweep_goes_on_with_the_same_result(
    llama: HookedTransformer, tmp_path: Path, sampling: cl.Sampling | None
) -> None:
    circuit = random_circuit(llama, 20)
    options: dict[str, Any] = {
        "random_draws": 2,
        "max_new_tokens": N_NEW,
        "batch_size": 2,
        "sampling": sampling,
    }
    whole = cl.sweep(llama, circuit, GROUPS, (0.0, 1.0, 3.0), **options)
    journal = tmp_path / "journal.jsonl"
    passes = []

    def kill(embedding: torch.Tensor, hook: Any) -> None:
        passes.append(1)
        if len(passes) > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), llama.hooks(fwd_hooks=[("hook_embed", kill)]):
        cl.sweep(llama, circuit, GROUPS, (0.0, 1.0, 3.0), journal=journal, **options)
    kept = len(journal.read_text().splitlines()) - 1
    assert 0 < kept < 21
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # the kill came in the middle of a line
    with counting_prompts(llama) as rows:
        resumed = cl.sweep(llama, circuit, GROUPS, (0.0, 1.0, 3.0), journal=journal, **options)
    assert_frame_equal(resumed.table, whole.table)
    assert sum(rows) == 3 * (2 * 3 + 1) - kept
    with counting_prompts(llama) as rows:
        cl.sweep(llama, circuit, GROUPS, (0.0, 1.0, 3.0), journal=journal, **options)
    assert rows == []


def test_a_journal_of_other_settings_or_of_no_kind_is_refused(
    llama: HookedTransformer, tmp_path: Path
) -> None:
    circuit = random_circuit(llama, 20)
    journal = tmp_path / "journal.jsonl"
    cl.sweep(llama, circuit, ["a"], (0.0,), max_new_tokens=2, journal=journal)
    for changes in (
        {"max_new_tokens": 3},
        {"sampling": cl.Sampling()},
        {"form": cl.PromptFormat(style="plain")},
        {"form": cl.PromptFormat(prepend_bos=False)},
    ):
        with pytest.raises(InvalidInput, match="other settings"):
            cl.sweep(
                llama, circuit, ["a"], (0.0,), journal=journal, **{"max_new_tokens": 2, **changes}
            )
    head, line = journal.read_text().splitlines()
    for text in ("something else\n", f"{head}\n{{}}\n", f"{head}\n[1]\n", f"{head}\n5\n"):
        journal.write_text(text)
        with pytest.raises(DamagedFile):
            cl.sweep(llama, circuit, ["a"], (0.0,), max_new_tokens=2, journal=journal)
    assert line.startswith('{"key"')


# --- random controls ---------------------------------------------------------------------------


@st.composite
def circuits_and_others(draw: st.DrawFn) -> tuple[cl.Circuit, list[tuple[int, int]]]:
    n_layers, d_mlp = draw(st.integers(1, 4)), draw(st.integers(4, 12))
    every = [(layer, neuron) for layer in range(n_layers) for neuron in range(d_mlp)]
    pairs = draw(st.lists(st.sampled_from(every), unique=True, min_size=1, max_size=10))
    others = draw(st.lists(st.sampled_from(every), max_size=8))
    ones = (1.0,) * len(pairs)
    layers, neurons = zip(*pairs, strict=True)
    return cl.Circuit(n_layers, d_mlp, layers, neurons, ones, ones), others


@given(circuits_and_others(), st.integers(0, 1000), st.integers(1, 4))
def test_random_circuits_are_matched_layer_by_layer_and_disjoint(
    drawn: tuple[cl.Circuit, list[tuple[int, int]]], seed: int, n_draws: int
) -> None:
    circuit, others = drawn
    counts = circuit.layer_table()["neurons"].tolist()
    left = [
        circuit.d_mlp - len({n for at, n in (*circuit, *others) if at == layer})
        for layer in range(circuit.n_layers)
    ]
    if any(count > free for count, free in zip(counts, left, strict=True)):
        with pytest.raises(InvalidInput, match="neurons left"):
            random_circuits(circuit, n_draws, seed=seed, exclude=others)
        return
    controls = random_circuits(circuit, n_draws, seed=seed, exclude=iter(others))
    assert len(controls) == n_draws
    for control in controls:
        assert control.layer_table()["neurons"].tolist() == counts
        assert not set(control) & {*circuit, *others}
        assert (control.n_layers, control.d_mlp) == (circuit.n_layers, circuit.d_mlp)
    assert random_circuits(circuit, n_draws, seed=seed, exclude=others) == controls
    # Draw i depends on the seed and i alone.
    assert random_circuits(circuit, n_draws + 2, seed=seed, exclude=others)[:n_draws] == controls


def test_draws_and_seeds_differ() -> None:
    circuit = cl.Circuit(2, 100, (0,) * 10, tuple(range(10)), (1.0,) * 10, (1.0,) * 10)
    controls = [*random_circuits(circuit, 3, seed=0), *random_circuits(circuit, 3, seed=1)]
    assert len({tuple(control) for control in controls}) == 6


def test_every_free_neuron_is_drawn_as_often_as_any_other() -> None:
    circuit = cl.Circuit(1, 12, (0, 0), (0, 1), (1.0, 1.0), (1.0, 1.0))
    counts = dict.fromkeys(range(2, 12), 0)
    for control in random_circuits(circuit, 2000):
        for _, neuron in control:
            counts[neuron] += 1
    # 2 of 10, 2000 times: 400 each, with a standard deviation of sqrt(2000 * 0.2 * 0.8) = 17.9.
    assert all(abs(count - 400) < 4 * 17.9 for count in counts.values())


def test_no_draws_are_no_control() -> None:
    circuit = cl.Circuit(1, 12, (0,), (0,), (1.0,), (1.0,))
    with pytest.raises(InvalidInput, match="n_draws"):
        random_circuits(circuit, 0)


def test_a_sweeps_controls_leave_near_top_neurons_out(
    llama: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cl.contrast(llama, cl.ContrastSet(["a b", "c"], ["d", "e"]), universal_prompts=None)
    made: list[cl.Circuit] = []

    def remember(self: ScaleNeurons, model: HookedTransformer) -> None:
        made.append(self.circuit)

    monkeypatch.setattr(ScaleNeurons, "check_fits", remember)
    cl.sweep(
        llama, found, ["a"], (0.0,), fractions=(0.05,), random_draws=4, exclude_top=0.4,
        max_new_tokens=1,
    )  # fmt: skip
    near = set(found.select(0.4))
    controls = [circuit for circuit in made if "random" in circuit.name]
    assert len(controls) == 4
    assert all(not set(control) & near for control in controls)


def test_one_string_is_not_a_list_of_prompts(llama: HookedTransformer) -> None:
    circuit = cl.Circuit(3, 40, layers=(0,), neurons=(1,), delta=(1.0,), pooled_std=(1.0,))
    for prompts in ("a b c", {"letters": "a b c"}):
        with pytest.raises(InvalidInput, match="not one string"):
            cl.sweep(llama, circuit, prompts, progress=False)


def test_the_provenance_says_how_long_responses_may_be(llama: HookedTransformer) -> None:
    circuit = cl.Circuit(3, 40, layers=(0,), neurons=(1,), delta=(1.0,), pooled_std=(1.0,))
    found = cl.sweep(llama, circuit, ["a b c"], [1.0], progress=False)
    (tokens,) = found.table["prompt_tokens"]
    assert found.provenance.settings["max_new_tokens"] == llama.cfg.n_ctx - tokens
