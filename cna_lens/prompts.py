"""Contrast sets: two lists of prompts, one that shows a behaviour and one that does not.

The built-in sets are JSON files in `cna_lens/contrast_sets/`; your own come from CSV, JSON, JSONL
or a hub data set. A good set differs between its sides in one thing only: whatever else differs is
found as well.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from cna_lens.errors import DamagedFile, InvalidInput, MissingExtra
from cna_lens.files import read_json, read_text
from cna_lens.provenance import digest

JBB_REPOSITORY = "JailbreakBench/JBB-Behaviors"
_PROMPT_COLUMNS = ("prompt", "Goal", "goal", "text", "instruction")


def _clean(prompts: Iterable[Any], what: str) -> tuple[str, ...]:
    """The prompts as a tuple of non-empty strings."""
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        kind = "one string" if isinstance(prompts, str) else type(prompts).__name__
        raise InvalidInput(f"{what} must be a list of prompts, not {kind}: {prompts!r:.60}")
    cleaned = tuple(prompts)
    for index, prompt in enumerate(cleaned):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidInput(f"{what} prompt {index} is not a non-empty text: {prompt!r}")
    return cleaned


@dataclass(frozen=True)
class ContrastSet:
    """Prompts that show a behaviour (`positive`) and prompts that do not (`negative`).

    Prompts on both sides are warned about: they add nothing to the difference of means.

    Raises:
        InvalidInput: a side is empty, or a prompt is not a non-empty string.

    >>> ContrastSet(["How do I pick a lock?"], ["How do I pick a melon?"], "locks")
    ContrastSet('locks': 1 positive, 1 negative)
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    name: str = "unnamed"

    def __init__(
        self, positive: Iterable[str], negative: Iterable[str], name: str = "unnamed"
    ) -> None:
        for side, prompts in (("positive", positive), ("negative", negative)):
            object.__setattr__(self, side, _clean(prompts, f"contrast set {name!r}: {side}"))
            if not getattr(self, side):
                raise InvalidInput(
                    f"contrast set {name!r} has no {side} prompts. CNA needs both sides: prompts "
                    "that show the behaviour, and prompts that do not."
                )
        object.__setattr__(self, "name", name)
        both = sorted(set(self.positive) & set(self.negative))
        if both:
            warnings.warn(
                f"contrast set {name!r}: {len(both)} prompt(s) stand on both sides "
                f"(first: {both[0]!r}) and cancel out. Remove them from one side.",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        sizes = f"{len(self.positive)} positive, {len(self.negative)} negative"
        return f"ContrastSet({self.name!r}: {sizes})"

    @property
    def hash(self) -> str:
        """A digest of the prompts, in order; the name does not count."""
        return digest(["positive", *self.positive, "negative", *self.negative])

    def split(self) -> tuple[ContrastSet, ContrastSet]:
        """Every other prompt of each side, and the rest: one half to discover on, one to test on.

        Raises:
            InvalidInput: a side has a single prompt.
        """
        return (
            ContrastSet(self.positive[::2], self.negative[::2], f"{self.name} (first half)"),
            ContrastSet(self.positive[1::2], self.negative[1::2], f"{self.name} (second half)"),
        )

    def head(self, n: int) -> ContrastSet:
        """The first `n` prompts of each side."""
        return ContrastSet(self.positive[:n], self.negative[:n], f"{self.name}[:{n}]")


def contrast_set_names() -> list[str]:
    """Names of the built-in contrast sets; `organism` is of the embedded organism's own world."""
    names = [Path(file.name).stem for file in _data_folder().iterdir() if ".json" in file.name]
    return sorted({*names, "organism"} - {"diverse"})


def load_contrast_set(source: str | Path) -> ContrastSet:
    """A built-in contrast set by name, or one from a CSV, JSON or JSONL file.

    A JSON file holds `{"positive": [...], "negative": [...]}`. A CSV or JSONL file holds rows of
    `prompt` and `label` (`positive` or `negative`), or the two columns `positive` and `negative`.

    Raises:
        InvalidInput: no such built-in set or file, unknown file type, or a side is empty.
        DamagedFile: the file's contents are not of that form.

    >>> load_contrast_set("refusal-8")
    ContrastSet('refusal-8': 8 positive, 8 negative)
    """
    path = Path(source)
    if str(source) == "organism":
        from cna_lens.organism import discovery_prompts

        return ContrastSet(*discovery_prompts(), "organism")
    if str(source) in contrast_set_names():
        data = json.loads(_data_folder().joinpath(f"{source}.json").read_text(encoding="utf-8"))
        return ContrastSet(data["positive"], data["negative"], str(source))
    if not path.exists():
        raise InvalidInput(
            f"no contrast set {str(source)!r}: neither a built-in set "
            f"({', '.join(contrast_set_names())}) nor a file."
        )
    if path.suffix == ".json":
        data = read_json(path)
        if not isinstance(data, dict) or not {"positive", "negative"} <= set(data):
            raise DamagedFile(f'{path} does not hold {{"positive": [...], "negative": [...]}}')
        name = data.get("name") or path.stem
        return ContrastSet(data["positive"], data["negative"], str(name))
    rows = _read_rows(path)
    return _from_rows(rows, path)


def _from_rows(rows: list[dict[str, Any]], path: Path) -> ContrastSet:
    """A contrast set from table rows: `prompt` + `label`, or `positive` + `negative`."""
    columns = set(rows[0]) if rows else set()
    sides: dict[str, list[Any]] = {"positive": [], "negative": []}
    if {"positive", "negative"} <= columns:
        for side, prompts in sides.items():
            prompts += [row[side] for row in rows if row.get(side)]
    elif {"prompt", "label"} <= columns:
        for number, row in enumerate(rows, start=1):
            if row.get("label") not in sides:
                raise DamagedFile(
                    f"{path}, row {number}: label is {row.get('label')!r}; it must be "
                    "'positive' or 'negative'."
                )
            sides[row["label"]].append(row.get("prompt"))
    else:
        raise DamagedFile(
            f"{path} has columns {sorted(map(str, columns))}; it needs 'prompt' and 'label', "
            "or 'positive' and 'negative'."
        )
    return ContrastSet(sides["positive"], sides["negative"], path.stem)


def load_prompts(source: str | Path) -> list[str]:
    """Prompts to evaluate on: a file, or `diverse`, the built-in neutral prompts.

    A `.txt` file holds a prompt a line; JSON a list of strings; CSV and JSONL a column `prompt`
    (or `Goal`, as JBB-Behaviors has).

    Raises:
        InvalidInput: no such file, an unknown file type, or no prompts in it.
        DamagedFile: the file's contents are not of that form.
    """
    if str(source) == "diverse":
        text = _data_folder().joinpath("diverse.json").read_text(encoding="utf-8")
        return list(json.loads(text)["prompts"])
    path = Path(source)
    if path.suffix == ".txt":
        prompts: Sequence[Any] = [line for line in read_text(path).splitlines() if line.strip()]
    elif path.suffix == ".json":
        data = read_json(path)
        prompts = data["prompts"] if isinstance(data, dict) and "prompts" in data else data
        if not isinstance(prompts, list):
            raise DamagedFile(f"{path} does not hold a list of prompts")
    else:
        rows = _read_rows(path)
        column = next((c for c in _PROMPT_COLUMNS if rows and c in rows[0]), None)
        if column is None:
            raise DamagedFile(f"{path} has none of the columns {', '.join(_PROMPT_COLUMNS)}")
        prompts = [row.get(column) for row in rows]
    if not prompts:
        raise InvalidInput(f"{path} holds no prompts")
    return list(_clean(prompts, str(path)))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or JSONL file."""
    if path.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(read_text(path))))
        except csv.Error as error:
            raise DamagedFile(f"{path} is not a CSV file: {error}") from error
    if path.suffix != ".jsonl":
        raise InvalidInput(f"{path}: file type {path.suffix!r} is not one of .csv, .json, .jsonl")
    rows = []
    # Not splitlines: JSON strings may hold other line ends, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DamagedFile(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}, line {number} is not a JSON object")
        rows.append(row)
    return rows


def load_hub_contrast_set(
    repository: str,
    *,
    prompt_column: str,
    label_column: str,
    positive_label: Any,
    negative_label: Any,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
) -> ContrastSet:
    """A contrast set from a hub data set with a prompt column and a label column.

    `repository` is anything that `datasets.load_dataset` takes, a local folder included.

    Raises:
        InvalidInput: the data set or a column is not there, or a side is empty.
    """
    rows = _hub_rows(repository, config=config, split=split, revision=revision)
    for column in (prompt_column, label_column):
        if column not in rows.column_names:
            raise InvalidInput(f"{repository} has columns {rows.column_names}, not {column!r}")
    pairs = list(zip(rows[prompt_column], rows[label_column], strict=True))
    return ContrastSet(
        [prompt for prompt, label in pairs if label == positive_label],
        [prompt for prompt, label in pairs if label == negative_label],
        repository,
    )


def load_jbb(source: str | Path | None = None, *, side: str = "harmful") -> list[str]:
    """The 100 goals of JBB-Behaviors, from the hub or from a CSV with a `Goal` column.

    Args:
        source: a CSV file; None fetches the data set from the hub.
        side: `harmful` or `benign` (hub only).

    Source: JailbreakBench, arXiv 2404.01318.
    """
    if source is not None:
        return load_prompts(source)
    rows = _hub_rows(JBB_REPOSITORY, config="behaviors", split=side)
    return list(_clean(rows["Goal"], JBB_REPOSITORY))


def _hub_rows(repository: str, **options: Any) -> Any:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtra(
            "hub data sets need the package datasets: pip install 'cna-lens[hub]'"
        ) from error
    name = options.pop("config", None)
    try:
        return load_dataset(repository, name, **options)
    except (OSError, ValueError, DatasetsError) as error:
        raise InvalidInput(
            f"cannot load the data set {repository!r} ({options}): {error}. Check its name and "
            "the network, or pass a CSV or JSON file."
        ) from error


def _data_folder() -> Any:
    return resources.files("cna_lens") / "contrast_sets"
