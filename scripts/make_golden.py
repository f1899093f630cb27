#!/usr/bin/env python3
"""Make the golden numbers in ``test/fixtures/golden`` with the published ALPS code.

Takes four real layer problems from SmolLM2 (dense weights, Gram matrices of State of the Union
text), writes them as fixtures, reads them back, gives them to the published solver, and measures what
it returns in float64. From the repository root::

    node scripts/fetch-smollm2.mjs
    node scripts/sotu-split.mjs build/sotu
    python scripts/make_golden.py --alps ALPS_CHECKOUT --model models/smollm2-135m \\
        --text build/sotu/calibration.jsonl [--sparsegpt SPARSEGPT_CHECKOUT]

A fixture ``<layer>.safetensors`` holds ``weight`` (bfloat16, [out, in]) and ``gram_upper`` (float32, the
upper triangle of X'X with the diagonal, row by row, n (n + 1) / 2 numbers). X'X is the plain sum over
the tokens: no division, no ridge. Needs torch, transformers, safetensors, tokenizers and numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))
from whole_model import Pattern, load_model, load_source, wanda_score, zero_rows, zero_smallest  # noqa: E402

LAYERS = {
    "block0-k_proj": "layers.0.self_attn.k_proj",
    "block5-q_proj": "layers.5.self_attn.q_proj",
    "block10-v_proj": "layers.10.self_attn.v_proj",
    "block20-o_proj": "layers.20.self_attn.o_proj",
}
PATTERNS = {"50%": "0.5", "70%": "0.7", "90%": "0.9", "2:4": "2:4", "4:8": "4:8"}
NOTES = {
    "error": "tr((B-W)' A (B-W)) / tr(W' A W), W the dense and B the pruned weights as [in, out], A = X'X of the fixture, in float64",
    "errorWithRidge": "the same with A + lambda2 I in place of A, both above and below",
    "reported": "what the published code returns: errorWithRidge, in float32",
    "lambda2": "0.01 * mean(diag A), added to A before the scaling to unit diagonal; ADMM and the refit both see it",
    "pattern": "the fraction of zeros, or {keep, of}: keep weights of every `of` consecutive inputs of an output",
    "rho": "after the last update; a check that ends the run because the support did not change leaves it as it was",
    "settings": "rho 0.1 at the start, a check every 3 iterations, at most 300 iterations, 10 conjugate gradient steps",
    "seconds": "of the solver alone, on a machine that was doing other work too: not a benchmark",
}


def calibration_windows(text: Path, tokenizer: Tokenizer, count: int, length: int, seed: int) -> torch.Tensor:
    """Windows at random places of random documents that are long enough."""
    lines = text.read_text(encoding="utf-8").splitlines()
    documents = [tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids for line in lines]
    documents = [document for document in documents if len(document) > length]
    generator = random.Random(seed)
    windows = []
    for _ in range(count):
        document = generator.choice(documents)
        start = generator.randrange(len(document) - length)
        windows.append(document[start : start + length])
    return torch.tensor(windows)


def collect(model: Any, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The Gram matrices of the dense model's layers, summed in float64."""
    decoder = model.model
    decoder.layers = decoder.layers[: 1 + max(int(name.split(".")[1]) for name in LAYERS.values())]
    grams: dict[str, torch.Tensor] = {}

    def hook(key: str) -> Any:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0][0].double()
            grams[key] = grams.get(key, 0) + x.T @ x

        return add

    handles = [decoder.get_submodule(name).register_forward_pre_hook(hook(key)) for key, name in LAYERS.items()]
    for index, window in enumerate(windows):
        decoder(window[None], use_cache=False)
        print(f"window {index + 1} of {len(windows)}", file=sys.stderr)
    for handle in handles:
        handle.remove()
    return grams


def write_fixtures(folder: Path, model: Any, grams: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in LAYERS.items():
        weight = model.model.get_submodule(name).weight.detach()
        if not torch.equal(weight.bfloat16().float(), weight):
            raise SystemExit(f"the weights of {name} are not bfloat16 numbers")
        row, column = torch.triu_indices(*grams[key].shape)
        tensors = {"weight": weight.bfloat16(), "gram_upper": grams[key][row, column].float()}
        save_file(tensors, folder / f"{key}.safetensors", metadata={"format": "pt"})
        (folder / f"{key}.safetensors").chmod(0o644)


def read_fixture(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(path)
    weight = tensors["weight"].float()
    size = weight.shape[1]
    row, column = torch.triu_indices(size, size)
    gram = torch.zeros(size, size)
    gram[row, column] = tensors["gram_upper"]
    gram[column, row] = tensors["gram_upper"]
    return weight, gram


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


@contextlib.contextmanager
def locals_at_return(function: str, found: dict[str, Any]) -> Any:
    """Keep the local variables with which a function returns: iterations and rho are not part of the solver's result."""

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == function:
            found.update(frame.f_locals)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def run_alps(peer: Any, weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, dict[str, Any]]:
    layer = linear(weight)
    solver = peer.ALPS_prune(layer, nsamples=0, seqlen=0)
    solver.XtX = gram.clone()
    found: dict[str, Any] = {}
    with locals_at_return("ALPS_admm", found):
        reported = solver.ALPS_admm(sp=pattern.sparsity, nm_n=pattern.keep, nm_m=pattern.of, rho=0.1)
    return layer.weight.data, {"reported": reported, "iterations": found["i_admm"] + 1, "rho": found["rho"]}


def run_sparsegpt(peer: Any, weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, dict[str, Any]]:
    layer = linear(weight)
    solver = peer.SparseGPT(layer)
    solver.H = gram.clone()
    with contextlib.redirect_stdout(sys.stderr):
        solver.fasterprune(pattern.sparsity, prunen=pattern.of - pattern.keep, prunem=pattern.of)
    return layer.weight.data, {}


def run_wanda(_: Any, weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, dict[str, Any]]:
    pruned = weight.clone()
    zero_rows(pruned, wanda_score(weight, gram.diagonal()), pattern)
    return pruned, {}


def run_magnitude(_: Any, weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, dict[str, Any]]:
    pruned = weight.clone()
    zero_smallest(pruned, weight.abs(), pattern)
    return pruned, {}


def relative_error(weight: torch.Tensor, pruned: torch.Tensor, gram: torch.Tensor, ridge: float) -> float:
    """W is [out, in] here, so the traces are sums over rows."""
    a = gram.double() + ridge * torch.eye(len(gram), dtype=torch.float64)
    difference, dense = pruned.double() - weight.double(), weight.double()
    return float(((difference @ a) * difference).sum() / ((dense @ a) * dense).sum())


def measure(key: str, weight: torch.Tensor, gram: torch.Tensor, methods: dict[str, Any]) -> dict[str, Any]:
    ridge = 0.01 * float(gram.diagonal().double().mean())
    patterns: dict[str, Any] = {}
    for label, text in PATTERNS.items():
        pattern = Pattern(text)
        results: dict[str, Any] = {}
        for method, (run, peer) in methods.items():
            start = time.perf_counter()
            pruned, extra = run(peer, weight, gram, pattern)
            results[method] = {
                "error": relative_error(weight, pruned, gram, 0),
                "errorWithRidge": relative_error(weight, pruned, gram, ridge),
                "nonZeros": int((pruned != 0).sum()),
                **extra,
                "seconds": round(time.perf_counter() - start, 3),
            }
        print(key, label, {name: round(result["error"], 6) for name, result in results.items()}, file=sys.stderr)
        patterns[label] = {"pattern": pattern.as_json(), "methods": results}
    return {"file": f"{key}.safetensors", "tensor": f"model.{LAYERS[key]}.weight", "shape": list(weight.shape), "lambda2": ridge, "patterns": patterns}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alps", type=Path, required=True, help="checkout of mazumder-lab/ALPS")
    parser.add_argument("--sparsegpt", type=Path, help="checkout of IST-DASLab/sparsegpt; left out without it")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with a field text")
    parser.add_argument("--out", type=Path, default=ROOT / "test" / "fixtures" / "golden")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = parse_arguments()
    methods: dict[str, Any] = {"alps": (run_alps, load_source(options.alps, "alps.py"))}
    if options.sparsegpt:
        methods["sparsegpt"] = (run_sparsegpt, load_source(options.sparsegpt, "sparsegpt.py"))
    methods |= {"wanda": (run_wanda, None), "magnitude": (run_magnitude, None)}

    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    windows = calibration_windows(options.text, tokenizer, options.windows, options.seqlen, options.seed)
    model = load_model(options.model)
    write_fixtures(options.out, model, collect(model, windows))
    layers = {key: measure(key, *read_fixture(options.out / f"{key}.safetensors"), methods) for key in LAYERS}

    source = {
        "model": "SmolLM2-135M-Instruct, made by scripts/fetch-smollm2.mjs",
        "text": "State of the Union addresses, calibration.jsonl made by scripts/sotu-split.mjs",
        "windows": options.windows,
        "seqlen": options.seqlen,
        "seed": options.seed,
        "reference": {
            "repository": "mazumder-lab/ALPS",
            "sha256 of alps.py": hashlib.sha256((options.alps / "alps.py").read_bytes()).hexdigest(),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    golden = {"source": source, "notes": NOTES, "layers": layers}
    (options.out / "golden.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
