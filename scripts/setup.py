"""Make the project's virtual environment: `python3 scripts/setup.py [extra ...]`.

Where there is no GPU, torch is installed as its CPU build: on Linux the plain package brings
several gigabytes of CUDA libraries. pip is asked first what it would install; where that has CUDA
packages in it, uv fetches the CPU build. Needs nothing but Python.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
TORCH = "torch==2.13.0"


def main(extras: list[str]) -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"cna-lens needs Python 3.10 to 3.13; this is {sys.version.split()[0]}")
    binaries = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
    python = str(binaries / "python")
    if not Path(python).exists():
        venv.create(ENVIRONMENT, with_pip=True)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        install_torch(python)
    wanted = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    pip(python, "install", "--editable", wanted)


def install_torch(python: str) -> None:
    """torch: with CUDA where there is an NVIDIA driver, else the CPU build."""
    if shutil.which("nvidia-smi") is None and brings_cuda(python):
        pip(python, "install", "uv")
        cpu_build = [python, "-m", "uv", "pip", "install", "--torch-backend=cpu", TORCH]
        if subprocess.run(cpu_build).returncode == 0:
            return
        sys.stderr.write("the CPU build of torch cannot be fetched; taking the large one\n")
    pip(python, "install", TORCH)


def brings_cuda(python: str) -> bool:
    """Whether plain pip would install CUDA libraries beside torch."""
    report = ["--dry-run", "--ignore-installed", "--report", "-"]
    answer = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *report, TORCH],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = [item["metadata"]["name"] for item in json.loads(answer.stdout)["install"]]
    return any(name.startswith("nvidia") for name in packages)


def pip(python: str, *arguments: str) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def run(*command: str) -> None:
    if subprocess.run(command).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main(sys.argv[1:])
