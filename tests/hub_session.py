"""Run by test_loading.py in a process of its own: load names from a hand-made hub cache, offline.

    python hub_session.py OUTPUT NAME...

writes, for every name, what was loaded (or the error) to OUTPUT as JSON.
"""

import json
import sys
from pathlib import Path

import torch

import cna_lens as cl
from cna_lens.models import describe, info

torch.set_num_threads(1)
TOKENS = torch.tensor([[8, 9, 10, 11, 12, 13, 14, 15]])


def load(name: str) -> dict[str, object]:
    source, _, revision = name.partition("@")
    try:
        model = cl.load_model(source, device="cpu", dtype="float32", revision=revision or None)
    except Exception as error:  # noqa: BLE001 - the test asks which error it is
        return {"error": type(error).__name__, "message": str(error)}
    with torch.no_grad():
        logits = model(TOKENS)[0, -1].tolist()
    about = info(model)
    text = cl.generate(model, ["a b c"], max_new_tokens=4)[0]
    return {
        "logits": logits,
        "loader": about.loader,
        "name": about.name,
        "revision": about.revision,
        "stop_tokens": list(about.stop_tokens),
        "bos": about.tokenizer.bos_token if about.tokenizer else "no tokenizer",
        "provenance": describe(model).to_dict(),
        "response": list(text.tokens),
    }


if __name__ == "__main__":
    output, *names = sys.argv[1:]
    found = {name: load(name) for name in names}
    Path(output).write_text(json.dumps(found), encoding="utf-8")
