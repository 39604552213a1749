"""The public surface, and the README's code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cna_lens as cl

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there() -> None:
    assert [name for name in cl.__all__ if getattr(cl, name, None) is None] == []
    assert {*cl._HOME, "organism", "plotting"} == set(cl.__all__) == set(dir(cl))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'discovr'"):
        _ = cl.discovr


def test_importing_the_package_does_not_import_torch() -> None:
    check = "import sys, cna_lens, cna_lens.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.slow
def test_the_readme_code_runs_as_pasted(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "refusal_rate" in done.stdout
