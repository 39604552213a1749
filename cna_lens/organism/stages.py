"""Finished work is kept whole, and used again only if it is what would be made now.

A stage is a folder. It is written under a temporary name beside its place and renamed when
complete, so a folder with a ``stage.json`` is never half a stage, however a run was stopped. The
file records everything the stage depends on; a stage of other settings is refused, never replaced.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cna_lens.errors import OutputError
from cna_lens.files import check_writable, read_json

RECORD = "stage.json"


def make_stage(
    folder: Path, record: Mapping[str, object], build: Callable[[Path], Mapping[str, object]]
) -> bool:
    """Make ``folder`` by calling ``build`` on an empty temporary folder, unless it is there.

    Args:
        folder: where the stage belongs.
        record: what the stage depends on, as JSON values.
        build: fills the folder it is given and returns notes (times, losses) for the record.

    Returns:
        Whether the stage was built now (False: a finished one with the same record was there).

    Raises:
        OutputError: if ``folder`` cannot be written, or exists and is not this stage, so that
            nobody's files are lost.
    """
    wanted = json.loads(json.dumps(record))
    if folder.exists():
        if read_record(folder) == wanted:
            return False
        raise OutputError(
            f"{folder} exists and was not made by this command with these settings; name another "
            "output folder, or delete that one"
        )
    check_writable(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        fresh = Path(temporary) / folder.name
        fresh.mkdir()
        notes = build(fresh)
        text = json.dumps({"made_from": wanted, "notes": dict(notes)}, indent=1, sort_keys=True)
        (fresh / RECORD).write_text(text + "\n", encoding="utf-8")
        fresh.rename(folder)
    return True


def read_record(folder: Path) -> object:
    """What a finished stage was made from; None if there is no finished stage."""
    path = folder / RECORD
    found = read_json(path) if path.is_file() else None
    return found.get("made_from") if isinstance(found, dict) else None
