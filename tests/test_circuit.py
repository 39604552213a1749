"""Circuits: selected by rank, in an order that never changes; kept in files that can be read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

import cna_lens as cl
from cna_lens.activations import ActivationStatistics
from cna_lens.errors import CircuitMismatch, DamagedFile, InvalidInput, OutputError
from cna_lens.models import describe
from cna_lens.provenance import Provenance

# beartype looks at a random item of each tuple, also in what a strategy makes.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Few different values, so that ties are common.
VALUES = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0]), st.floats(-1e3, 1e3, width=32))
BY = st.sampled_from(["delta", "effect_size"])


@st.composite
def contrasts(draw: st.DrawFn) -> cl.Contrast:
    n_layers, d_mlp = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    n = n_layers * d_mlp

    def column(values: st.SearchStrategy[Any]) -> torch.Tensor:
        return torch.tensor(draw(st.lists(values, min_size=n, max_size=n))).view(n_layers, d_mlp)

    return cl.Contrast(
        delta=column(VALUES).double(),
        pooled_std=column(st.sampled_from([0.0, 0.5, 1.0, 3.0])).double(),
        universal=column(st.sampled_from([False, False, True])),
        n_positive=draw(st.integers(1, 9)),
        n_negative=draw(st.integers(1, 9)),
        provenance=Provenance(contrast_set="drawn", settings={"position": "last"}),
    )


def naive_ranking(contrast: cl.Contrast, by: str, sign: str | None = None) -> list[tuple[int, int]]:
    """All allowed neurons, by |score|, equal ones in the order of (layer, neuron)."""
    n_layers, d_mlp = contrast.delta.shape
    score = {}
    for layer in range(n_layers):
        for neuron in range(d_mlp):
            delta = float(contrast.delta[layer, neuron])
            spread = float(contrast.pooled_std[layer, neuron])
            if by == "effect_size" and delta != 0:
                delta = delta / spread if spread > 0 else np.inf * np.sign(delta)
            right_sign = sign is None or (delta > 0 if sign == "positive" else delta < 0)
            if right_sign and not contrast.universal[layer, neuron]:
                score[layer, neuron] = abs(delta)
    return sorted(score, key=lambda pair: (-score[pair], pair))


# --- selection ---------------------------------------------------------------------------------


@given(contrasts(), BY, st.sampled_from([None, "positive", "negative"]), st.integers(1, 40))
def test_selection_is_the_top_k_of_a_plain_ranking(
    contrast: cl.Contrast, by: Any, sign: Any, k: int
) -> None:
    expected = naive_ranking(contrast, by, sign)
    if not expected:
        with pytest.raises(InvalidInput, match="no neuron is left"):
            contrast.select(k=k, by=by, sign=sign)
        return
    circuit = contrast.select(k=k, by=by, sign=sign)
    assert list(circuit) == expected[:k]
    assert len(circuit) == min(k, len(expected))
    assert not any(contrast.universal[pair] for pair in circuit)
    assert circuit.delta == tuple(float(contrast.delta[pair]) for pair in circuit)
    assert circuit.pooled_std == tuple(float(contrast.pooled_std[pair]) for pair in circuit)


@given(contrasts(), BY, st.integers(1, 20), st.integers(1, 20))
def test_a_smaller_circuit_is_a_prefix_of_a_larger_one(
    contrast: cl.Contrast, by: Any, one: int, other: int
) -> None:
    if bool(contrast.universal.all()):
        return
    small, large = (contrast.select(k=k, by=by) for k in sorted((one, other)))
    assert list(large)[: len(small)] == list(small)
    assert large.top(len(small)) == small
    assert small.top(1000) == small


@given(contrasts())
def test_signs_part_a_circuit_in_two(contrast: cl.Contrast) -> None:
    if bool(contrast.universal.all()):
        return
    circuit = contrast.select(fraction=1.0)
    halves = []
    for sign, right in (("positive", lambda x: x > 0), ("negative", lambda x: x < 0)):
        expected = [pair for pair in circuit if right(float(contrast.delta[pair]))]
        if expected:
            assert list(circuit.signed(sign)) == expected
            assert set(contrast.select(fraction=1.0, sign=sign)) == set(expected)
        else:
            with pytest.raises(InvalidInput, match=f"{sign} delta"):
                circuit.signed(sign)
        halves += expected
    # A neuron that does not differ between the sides is in neither half.
    still = [pair for pair in circuit if contrast.delta[pair] == 0]
    assert set(circuit) - set(halves) == set(still)
    assert sum(circuit.table()["sign"] == "none") == len(still)


def a_contrast(n_layers: int = 16, d_mlp: int = 500, seed: int = 0) -> cl.Contrast:
    random = torch.Generator().manual_seed(seed)
    return cl.Contrast(
        torch.randn(n_layers, d_mlp, generator=random, dtype=torch.float64),
        torch.rand(n_layers, d_mlp, generator=random, dtype=torch.float64),
        torch.rand(n_layers, d_mlp, generator=random) < 0.1,
        8,
        8,
        Provenance(model="tiny", contrast_set="made up", contrast_set_hash="0", settings={"x": 1}),
    )


def test_sides_of_different_models_have_no_contrast() -> None:
    one, other = (ActivationStatistics.of(torch.zeros(2, 3, d_mlp)) for d_mlp in (4, 1))
    with pytest.raises(CircuitMismatch):
        cl.Contrast.between(one, other)


@pytest.mark.parametrize(
    ("fraction", "neurons"), [(0.001, 8), (0.0011, 9), (1e-9, 1), (0.5, 4000), (0.0001, 1)]
)
def test_a_fraction_is_of_all_neurons_rounded_and_at_least_one(
    fraction: float, neurons: int
) -> None:
    circuit = a_contrast().select(fraction)  # of 16 * 500 = 8000
    assert len(circuit) == neurons
    assert circuit.fraction == neurons / 8000


def test_the_filter_comes_before_the_counting() -> None:
    contrast = a_contrast()
    assert 700 < int(contrast.universal.sum()) < 900
    assert len(contrast.select(0.85)) == 6800  # refilled: without that some 680 would be missing
    assert len(contrast.select(1.0)) == 8000 - int(contrast.universal.sum())


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize(
    "wrong",
    [
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"fraction": -0.1},
        {"k": 0},
        {"k": -1},
        {"by": "size"},
        {"sign": "up"},
    ],
)
def test_a_selection_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        a_contrast().select(**wrong)


def test_a_bad_fraction_is_refused_before_the_model_runs(llama: HookedTransformer) -> None:
    def refuse(tokens: Any, hook: Any) -> None:
        raise AssertionError("the model ran")

    with llama.hooks(fwd_hooks=[("hook_embed", refuse)]):
        for wrong in ({"fraction": 2.0}, {"k": 0}, {"universal_share": 0.0}):
            with pytest.raises(InvalidInput):
                cl.discover(llama, cl.ContrastSet(["a"], ["b"]), **wrong)


# --- what a circuit is -------------------------------------------------------------------------


def a_circuit(**overrides: Any) -> cl.Circuit:
    columns: dict[str, Any] = {
        "n_layers": 3,
        "d_mlp": 40,
        "layers": (2, 0, 2),
        "neurons": (7, 39, 1),
        "delta": (-3.0, 2.0, 1.5),
        "pooled_std": (1.5, 0.0, 1.0),
        "provenance": Provenance(model="tiny", contrast_set="made up"),
    }
    return cl.Circuit(**{**columns, **overrides})


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": (2, 0)},
        {"delta": (1.0,)},
        {"layers": (2, 0, 3)},
        {"layers": (2, 0, -1)},
        {"neurons": (7, 40, 1)},
        {"layers": (2, 0, 2), "neurons": (7, 39, 7)},  # the same neuron twice
        {"delta": (float("nan"), 2.0, 1.5)},
        {"pooled_std": (1.0, float("inf"), 1.0)},
    ],
)
def test_a_circuit_that_no_model_has_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        a_circuit(**wrong)


def test_tables_say_what_the_circuit_is() -> None:
    table = a_circuit().table()
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["effect_size"].tolist()[::2] == [-2.0, 1.5]
    assert np.isinf(table["effect_size"][1])  # no spread: as in Contrast.effect_size
    assert table["sign"].tolist() == ["negative", "positive", "positive"]
    layers = a_circuit().layer_table()
    assert layers["neurons"].tolist() == [1, 0, 2]
    assert layers["cumulative"].tolist() == pytest.approx([1 / 3, 1 / 3, 1.0])
    assert a_circuit().by_layer() == {0: (39,), 2: (1, 7)}
    assert a_circuit().name == "made up (3 neurons)"
    assert "3 neurons" in a_circuit()._repr_html_()


def test_a_circuit_for_another_model_is_refused(llama: HookedTransformer) -> None:
    other = a_circuit(n_layers=4)
    with pytest.raises(CircuitMismatch, match="4 layers x 40 neurons"):
        other.check_fits(llama)
    with pytest.raises(CircuitMismatch), cl.steer(llama, other):
        pass
    with pytest.raises(CircuitMismatch), cl.fold(llama, other):
        pass
    with pytest.raises(CircuitMismatch):
        cl.generate(llama, ["a"], [(other, 0.0)], max_new_tokens=1)
    with pytest.raises(CircuitMismatch):
        cl.sweep(llama, other, ["a"], max_new_tokens=1)
    a_circuit().check_fits(llama)


# --- files -------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def circuits(draw: st.DrawFn) -> cl.Circuit:
    n_layers, d_mlp = draw(st.integers(1, 5)), draw(st.integers(1, 50))
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, n_layers - 1), st.integers(0, d_mlp - 1)),
            unique=True,
            max_size=8,
        )
    )
    n = len(pairs)
    return cl.Circuit(
        n_layers,
        d_mlp,
        tuple(layer for layer, _ in pairs),
        tuple(neuron for _, neuron in pairs),
        tuple(draw(st.lists(FINITE, min_size=n, max_size=n))),
        tuple(draw(st.lists(FINITE, min_size=n, max_size=n))),
        Provenance(
            model=draw(st.text()),
            contrast_set=draw(st.none() | st.text()),
            seed=draw(st.none() | st.integers()),
            settings=draw(st.dictionaries(st.text(), st.none() | FINITE | st.text())),
        ),
    )


@given(circuits())
def test_a_circuit_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, circuit: cl.Circuit
) -> None:
    path = tmp_path_factory.getbasetemp() / "circuit.json"
    assert cl.Circuit.load(circuit.save(path)) == circuit


def test_a_circuit_file_is_json_for_people(tmp_path: Path) -> None:
    path = a_circuit().save(tmp_path / "deep" / "er" / "circuit.json")
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    assert (data["format"], data["version"]) == ("cna_lens.circuit", 1)
    assert data["columns"] == ["layer", "neuron", "delta", "pooled_std"]
    assert data["neurons"] == [[2, 7, -3.0, 1.5], [0, 39, 2.0, 0.0], [2, 1, 1.5, 1.0]]
    assert "    [2, 7, -3.0, 1.5],\n" in text  # one neuron a line
    assert path.read_bytes()[:1] == b"{"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("as_called_by_users")
def test_numbers_from_numpy_are_saved_too(tmp_path: Path) -> None:
    made = a_circuit(
        layers=tuple(np.array([2, 0, 2])),
        neurons=tuple(np.array([7, 39, 1])),
        delta=tuple(np.array([-3.0, 2.0, 1.5], dtype=np.float32)),
    )
    assert cl.Circuit.load(made.save(tmp_path / "circuit.json")) == a_circuit()


def damaged_circuits() -> dict[str, Any]:
    good = {
        "format": "cna_lens.circuit",
        "version": 1,
        "n_layers": 3,
        "d_mlp": 40,
        "provenance": {"model": "tiny"},
        "columns": ["layer", "neuron", "delta", "pooled_std"],
        "neurons": [[2, 7, -3.0, 1.5]],
    }
    without = {key: {k: v for k, v in good.items() if k != key} for key in good}
    return {
        **{f"without {key}": data for key, data in without.items() if key != "columns"},
        "another format": {**good, "format": "cna_lens.contrast"},
        "another version": {**good, "version": 2},
        "a list": [good],
        "three columns": {**good, "neurons": [[2, 7, -3.0]]},
        "ragged": {**good, "neurons": [[2, 7, -3.0, 1.5], [2, 8, 1.0]]},
        "outside the model": {**good, "neurons": [[3, 7, -3.0, 1.5]]},
        "twice": {**good, "neurons": [[2, 7, -3.0, 1.5]] * 2},
        "half a neuron": {**good, "neurons": [[2, 7.5, -3.0, 1.5]]},
        "a whole real": {**good, "neurons": [[2, 7.0, -3.0, 1.5]]},
        "a word": {**good, "neurons": [[2, 7, "big", 1.5]]},
        "not finite": {**good, "neurons": [[2, 7, float("inf"), 1.5]]},
        "no list": {**good, "neurons": 5},
        "shape in words": {**good, "n_layers": "three"},
        "unknown provenance": {**good, "provenance": {"weather": "fine"}},
        "provenance of another type": {**good, "provenance": [1]},
        "settings of another type": {**good, "provenance": {"settings": 5}},
    }


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize("damage", damaged_circuits())
def test_a_damaged_circuit_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(damaged_circuits()[damage]), encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"circuit\.json"):
        cl.Circuit.load(path)


def test_a_truncated_circuit_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = a_circuit().save(tmp_path / "whole.json").read_bytes()
    path = tmp_path / "part.json"
    for end in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFile):
            cl.Circuit.load(path)


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\x04\x95")
    with pytest.raises(DamagedFile, match="UTF-8"):
        cl.Circuit.load(tmp_path / "binary")
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InvalidInput):
            cl.Circuit.load(path)


def test_a_contrast_comes_back_equal(tmp_path: Path) -> None:
    made = a_contrast()
    back = cl.Contrast.load(made.save(tmp_path / "made.safetensors"))
    for name in ("delta", "pooled_std", "universal"):
        assert torch.equal(getattr(back, name), getattr(made, name))
        assert getattr(back, name).dtype == getattr(made, name).dtype
    assert (back.n_positive, back.n_negative) == (8, 8)
    assert back.provenance == made.provenance
    assert back.select(0.01) == made.select(0.01)


def test_a_measured_contrast_comes_back_equal(llama: HookedTransformer, tmp_path: Path) -> None:
    made = cl.contrast(llama, cl.ContrastSet(["a b", "c"], ["d", "e"]), universal_prompts=["f"])
    back = cl.Contrast.load(made.save(tmp_path / "made.safetensors"))
    assert back.provenance == made.provenance
    assert back.select(k=5) == made.select(k=5)


@pytest.mark.usefixtures("as_called_by_users")
def test_a_damaged_contrast_file_is_refused(tmp_path: Path) -> None:
    whole = a_contrast(2, 3).save(tmp_path / "whole").read_bytes()
    path = tmp_path / "part"
    for end in (0, 1, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFile):
            cl.Contrast.load(path)
    head = {
        "format": "cna_lens.contrast",
        "version": "1",
        "n_positive": "8",
        "n_negative": "8",
        "provenance": "{}",
    }
    square = torch.zeros(2, 3, dtype=torch.float64)
    good = {"delta": square, "pooled_std": square.clone(), "universal": square.bool()}

    def refused(tensors: dict[str, torch.Tensor], **head_changes: str) -> None:
        save_file(tensors, path, metadata={**head, **head_changes})
        with pytest.raises(DamagedFile, match="part"):
            cl.Contrast.load(path)

    save_file(good, path, metadata=head)
    cl.Contrast.load(path)
    refused(good, format="cna_lens.circuit")
    refused(good, version="2")
    refused(good, n_positive="many")
    refused(good, provenance="{")
    refused(good, provenance='{"weather": 1}')
    refused({"delta": square})
    refused({**good, "pooled_std": torch.zeros(2, 4, dtype=torch.float64)})
    refused({**good, "universal": square.clone()})
    refused({**good, "delta": torch.full((2, 3), float("nan"), dtype=torch.float64)})
    refused({name: tensor.flatten() for name, tensor in good.items()})
    save_file(good, path)
    with pytest.raises(DamagedFile):
        cl.Contrast.load(path)
    with pytest.raises(InvalidInput):
        cl.Contrast.load(tmp_path / "missing")


SAVERS = {
    "circuit": lambda path: a_circuit().save(path),
    "contrast": lambda path: a_contrast(2, 3).save(path),
}


@pytest.mark.parametrize("saver", SAVERS)
def test_where_nothing_can_be_written_nothing_is_left(
    saver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "circuit.json", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            SAVERS[saver](path)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OutputError, match="No space left"):
        SAVERS[saver](tmp_path / "new.json")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("saver", SAVERS)
def test_a_failed_write_keeps_the_old_file(
    saver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SAVERS[saver](tmp_path / "saved")
    before = path.read_bytes()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SAVERS[saver](path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


# --- provenance --------------------------------------------------------------------------------


@pytest.fixture
def found(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[cl.Contrast, HookedTransformer]:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    model = cl.load_model(llama_folder, device="cpu")
    contrast_set = cl.ContrastSet(["a b", "c"], ["d", "e"], "letters")
    return cl.contrast(model, contrast_set, universal_prompts=["f", "g"]), model


def test_files_hold_no_token_and_no_path(
    found: tuple[cl.Contrast, HookedTransformer], tmp_path: Path, llama_folder: Path
) -> None:
    contrast, _ = found
    for path in (
        contrast.save(tmp_path / "contrast.safetensors"),
        contrast.select(k=4).save(tmp_path / "circuit.json"),
    ):
        text = path.read_bytes().decode("latin-1")
        assert "hf_very_secret" not in text
        assert str(llama_folder.parent) not in text
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text or str(Path.home()) == "/"


def test_a_circuit_says_where_it_came_from(
    found: tuple[cl.Contrast, HookedTransformer],
) -> None:
    contrast, model = found
    origin = contrast.select(k=4, by="effect_size").provenance
    assert (origin.model, origin.loader, origin.dtype) == ("tiny-llama", "folder", "float32")
    assert (origin.weight_processing, origin.prompt_style) == ("none", "chat")
    assert origin.weights == describe(model).weights
    assert origin.contrast_set == "letters"
    assert origin.contrast_set_hash == cl.ContrastSet(["a b", "c"], ["d", "e"], "other").hash
    assert origin.settings["position"] == "last"
    assert origin.settings["universal"]["top"] == 0.001
    assert (origin.settings["k"], origin.settings["by"]) == (4, "effect_size")
    assert set(origin.versions) == {
        "python",
        "cna-lens",
        "transformer-lens",
        "torch",
        "transformers",
    }


def test_the_same_experiment_gives_the_same_file(
    found: tuple[cl.Contrast, HookedTransformer], llama_folder: Path, tmp_path: Path
) -> None:
    contrast, _ = found
    again = cl.contrast(
        cl.load_model(llama_folder, device="cpu"),
        cl.ContrastSet(["a b", "c"], ["d", "e"], "letters"),
        universal_prompts=["f", "g"],
    )
    one, other = (
        each.select(k=4).save(tmp_path / name)
        for each, name in ((contrast, "one"), (again, "other"))
    )
    assert one.read_bytes() == other.read_bytes()


def test_what_changes_a_result_changes_its_provenance(
    found: tuple[cl.Contrast, HookedTransformer],
) -> None:
    contrast, model = found
    contrast_set = cl.ContrastSet(["a b", "c"], ["d", "e"], "letters")
    base: dict[str, Any] = {"universal_prompts": ["f", "g"]}
    assert cl.contrast(model, contrast_set, **base).provenance == contrast.provenance
    for change in (
        {"position": "mean"},
        {"universal_prompts": ["f"]},
        {"universal_prompts": None},
        {"universal_top": 0.01},
        {"universal_share": 0.5},
        {"form": cl.PromptFormat(style="plain")},
        {"form": cl.PromptFormat(prepend_bos=False)},
    ):
        changed = cl.contrast(model, contrast_set, **{**base, **change}).provenance
        assert changed != contrast.provenance, change
    swapped = cl.ContrastSet(contrast_set.negative, contrast_set.positive, "letters")
    assert cl.contrast(model, swapped, **base).provenance != contrast.provenance


def test_provenance_is_a_plain_dictionary_and_back() -> None:
    origin = Provenance(model="m", seed=0, settings={"a": [1, None]}).with_settings(b=2)
    assert origin.to_dict()["settings"] == {"a": [1, None], "b": 2}
    assert Provenance.from_dict(json.loads(json.dumps(origin.to_dict()))) == origin
    assert "revision" not in origin.to_dict()
    assert replace(origin, seed=1) != origin
