"""The command line, run as a user runs it: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import cna_lens as cl
from cna_lens.cli import app

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    """stdout of a command that exits with `code`."""
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture(scope="module")
def contrast_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "letters.json"
    path.write_text(
        json.dumps({"positive": ["a b", "a c d", "a e"], "negative": ["x y", "z", "w v"]})
    )
    return path


@pytest.mark.parametrize("command", ["info", "discover", "generate", "sweep", "demo", "organism"])
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in run(command, "--help")


def test_info_lists_the_contrast_sets_and_versions() -> None:
    facts = json.loads(run("info", "--json"))
    names = {row["name"] for row in facts["contrast_sets"]}
    assert {"refusal", "refusal-8", "organism"} <= names
    assert facts["versions"]["cna-lens"] == cl.__version__


def test_info_shows_what_the_model_sees(llama_folder: Path) -> None:
    facts = json.loads(run("info", llama_folder, "--prompt", "a b", "--json"))
    assert (facts["n_layers"], facts["d_mlp"], facts["neurons"]) == (3, 40, 120)
    assert [row["token"] for row in facts["tokens"]][-1] == "<|assistant|>"
    assert [row["id"] for row in facts["tokens"]].count(1) == 1  # one BOS


def test_discover_writes_a_circuit_that_generate_and_sweep_take(
    llama_folder: Path, contrast_file: Path, tmp_path: Path
) -> None:
    out, every = tmp_path / "c.json", tmp_path / "all.safetensors"
    found = json.loads(
        run(
            *("discover", "-m", llama_folder, "-c", contrast_file, "--fraction", 0.05),
            *("-o", out, "--measured", every, "--json"),
        )
    )
    circuit = cl.Circuit.load(out)
    assert len(circuit) == 6 == len(found["neurons"])
    assert cl.Contrast.load(every).select(0.05) == circuit

    answers = json.loads(
        run(
            "generate",
            "a b",
            "c",
            "-m",
            llama_folder,
            "--circuit",
            out,
            "--max-new-tokens",
            5,
            "--json",
        )
    )
    assert [(row["prompt"], row["multiplier"]) for row in answers] == [
        ("a b", 1.0), ("a b", 0.0), ("c", 1.0), ("c", 0.0),
    ]  # fmt: skip

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a b\nc d\n")
    folder = tmp_path / "sweep"
    summary = json.loads(
        run(
            *("sweep", "-m", llama_folder, "--circuit", out, "--prompts", prompts, "-o", folder),
            *("--multipliers", "0,1", "--max-new-tokens", 5, "--random-draws", 2, "--json"),
        )
    )
    assert {row["multiplier"] for row in summary["summary"]} == {0.0, 1.0}
    assert len(pd.read_csv(folder / "responses.csv")) == 2 * 2 * 3  # prompts, strengths, circuits


def test_sweep_holds_out_half_of_the_contrast_set(llama_folder: Path, tmp_path: Path) -> None:
    run(
        *("sweep", "--model", llama_folder, "--contrast-set", "refusal", "-o", tmp_path / "s"),
        *("--multipliers", "0,1", "--max-new-tokens", 4),
    )
    asked = set(pd.read_csv(tmp_path / "s" / "responses.csv")["prompt"])
    whole = cl.load_contrast_set("refusal")
    assert asked == {*whole.positive[1::2], *whole.negative[1::2]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "no-such-model"], "no model 'no-such-model'"),
        (["discover", "-c", "no-such-set"], "no contrast set 'no-such-set'"),
        (["discover", "--fraction", "2"], "fraction must be in (0, 1]"),
        (["generate"], "no prompts"),
        (["generate", "hi", "--circuit", "none.json"], "cannot read none.json"),
        (["sweep", "--multipliers", "0,a"], "must be numbers"),
        (["info", "organism/base", "--device", "nodevice"], "device 'nodevice' cannot be used"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(arguments: list[str], said: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert said in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["discover", "-m", "MODEL", "-c", "refusal-8", "-o", "FILE/circuit.json"],
        ["discover", "-m", "MODEL", "-c", "refusal-8", "--measured", "."],
        ["sweep", "-m", "MODEL", "-c", "refusal-8", "-o", "FILE/sweep"],
        ["demo", "-o", "FILE/demo"],
        ["organism", "evaluate", "-o", "FILE/table.csv"],
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    arguments: list[str], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("a file in the way")
    monkeypatch.setattr("cna_lens.generation.stream_responses", None)  # no decoding may begin
    result = runner.invoke(app, [a.replace("MODEL", str(llama_folder)) for a in arguments])
    assert result.exit_code == 1 and "cannot write" in result.stderr, result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"FILE", "circuit.json"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--no-such-option"],
        ["sweep", "--limit", "0"],
        ["sweep", "--random-draws", "-1"],
        ["demo", "--draws", "0"],
        ["organism", "evaluate", "--split", "train"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cna_lens", "info", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["models"] == ["organism/base", "organism/instruct"]


def test_a_sweep_that_was_killed_goes_on_where_it_stopped(
    llama_folder: Path, contrast_file: Path, tmp_path: Path
) -> None:
    def sweep(folder: Path, multipliers: str) -> str:
        run(
            *("sweep", "-m", llama_folder, "-c", contrast_file, "-o", folder),
            *("--multipliers", multipliers, "--max-new-tokens", 5),
        )
        return (folder / "responses.csv").read_text()

    whole = sweep(tmp_path / "whole", "0,1,2")
    journal = tmp_path / "killed" / "journal.jsonl"
    journal.parent.mkdir()
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]) + lines[3][:20])  # -9 in the middle of a line

    assert sweep(tmp_path / "killed", "0,1,2") == whole
    written = journal.read_text().splitlines(keepends=True)
    assert written[:3] == lines[:3] and len(written) == len(lines)  # nothing was done twice

    before = journal.read_text()
    sweep(tmp_path / "killed", "0,1,2")
    assert journal.read_text() == before


def test_a_sweep_folder_of_other_settings_is_refused(
    llama_folder: Path, contrast_file: Path, tmp_path: Path
) -> None:
    command = ["sweep", "-m", llama_folder, "-c", contrast_file, "-o", tmp_path / "s"]
    run(*command, "--max-new-tokens", 5)
    result = runner.invoke(app, [str(a) for a in (*command, "--max-new-tokens", 6)])
    assert result.exit_code == 1 and "other settings" in result.stderr
