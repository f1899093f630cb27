#!/usr/bin/env python3
"""Add to ``test/fixtures/golden`` what the published DSnoT code makes of the same layers.

    python scripts/make_dsnot_golden.py --dsnot DSNOT_CHECKOUT --model models/smollm2-135m --text build/sotu/calibration.jsonl

Its function for a whole model runs on a model of one block with one linear layer, whose inputs are those of the real
layer, with its defaults and no layer left out. Written are ``dsnot.json`` (errors in float64) and ``input-sums.safetensors``
(the sum of each input over all tokens, which the Gram matrices of the fixtures do not hold). Needs what make_golden.py needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from make_golden import LAYERS, PATTERNS, ROOT, calibration_windows, linear, read_fixture, relative_error
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from whole_model import Pattern, load_model

INITIAL = ("wanda", "magnitude", "sparsegpt")


def load_dsnot(checkout: Path) -> types.ModuleType:
    """lib/prune.py and what it imports, on the CPU."""
    sys.path.insert(0, str(checkout))
    for name in ("lib.data", "lib.eval", "lib.save_results"):
        stub = types.ModuleType(name)
        stub.get_loaders = lambda *_, **__: (None, None)  # type: ignore[attr-defined]
        stub.eval_ppl = stub.save_time_result = lambda *_, **__: None  # type: ignore[attr-defined]
        sys.modules[name] = stub
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.empty_cache = lambda *_: None
    path = checkout / "lib" / "prune.py"
    module = types.ModuleType("dsnot_prune")
    exec(compile(path.read_text(encoding="utf-8").replace("cuda:0", "cpu").replace("from .", "from lib."), str(path), "exec"), module.__dict__)
    return module


def collect_inputs(model: Any, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The dense model's inputs of each layer, [windows, length, n]."""
    decoder = model.model
    decoder.layers = decoder.layers[: 1 + max(int(name.split(".")[1]) for name in LAYERS.values())]
    found: dict[str, list[torch.Tensor]] = {key: [] for key in LAYERS}
    handles = [
        decoder.get_submodule(name).register_forward_pre_hook(lambda _, inputs, key=key: found[key].append(inputs[0][0].clone()))
        for key, name in LAYERS.items()
    ]
    for window in windows:
        decoder(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: torch.stack(parts) for key, parts in found.items()}


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.x_proj = layer

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.self_attn.x_proj(x),)


def run_dsnot(peer: Any, weight: torch.Tensor, inputs: torch.Tensor, initial: str, pattern: Pattern) -> torch.Tensor:
    layer = linear(weight)
    block = OneLayer(layer)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(use_cache=False), model=types.SimpleNamespace(layers=[block]), hf_device_map={}, seqlen=inputs.shape[1]
    )
    outputs = torch.zeros(*inputs.shape[:2], weight.shape[0])
    peer.prepare_calibration_input = lambda *_: (inputs, outputs, None, None)
    args = types.SimpleNamespace(
        nsamples=len(inputs), seed=0, initial_method=initial, sparsity_ratio=pattern.sparsity, skip_layer="no_skip", skip_sub_layer="no_skip",
        without_DSnoT=False, without_same_sign=True, pow_of_var_regrowing=1, pow_of_var_pruning=1, max_cycle_time=50, update_threshold=0.1,
        get_time_overhead=False,
    )  # fmt: skip
    if initial == "sparsegpt":
        gram_of_batches(peer)
    with contextlib.redirect_stdout(sys.stderr):
        peer.prune_DSnoT(args, model, None, torch.device("cpu"), prune_n=pattern.of - pattern.keep, prune_m=pattern.of)
    return layer.weight.data


def gram_of_batches(peer: Any) -> None:
    """The published statistics never fill the Hessian that this start needs; here they do, by SparseGPT's own rule."""
    original = peer.WrappedGPT.add_batch
    if hasattr(peer.WrappedGPT, "filled"):
        return

    def add_batch(self: Any, inp: torch.Tensor, out: torch.Tensor) -> None:
        original(self, inp, out)
        if self.initial_method == "sparsegpt":
            x = inp.reshape(-1, inp.shape[-1]).float()
            self.H += 2 * x.T @ x

    peer.WrappedGPT.add_batch = add_batch
    peer.WrappedGPT.filled = True


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dsnot", type=Path, required=True, help="checkout of zyxxmu/DSnoT")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    folder = ROOT / "test" / "fixtures" / "golden"
    peer = load_dsnot(options.dsnot)
    windows = calibration_windows(options.text, Tokenizer.from_file(str(options.model / "tokenizer.json")), 32, 1024, 0)
    inputs = collect_inputs(load_model(options.model), windows)
    sums, layers = {}, {}
    for key in LAYERS:
        weight, gram = read_fixture(folder / f"{key}.safetensors")
        x = inputs[key].double().reshape(-1, weight.shape[1])
        drift = float((x.T @ x - gram).abs().max() / gram.abs().max())
        if drift > 1e-5:
            raise SystemExit(f"{key}: the Gram matrix of these inputs differs from the fixture's by {drift}")
        sums[key] = x.sum(0).float()
        layers[key] = {
            label: {
                initial: {"error": relative_error(weight, pruned, gram, 0), "nonZeros": int((pruned != 0).sum())}
                for initial in INITIAL
                for pruned in [run_dsnot(peer, weight, inputs[key], initial, Pattern(text))]
            }
            for label, text in PATTERNS.items()
        }
        print(key, json.dumps(layers[key]), file=sys.stderr)
    save_file(sums, folder / "input-sums.safetensors")
    (folder / "input-sums.safetensors").chmod(0o644)
    golden = {"windows": len(windows), "seqlen": windows.shape[1], "settings": "defaults, no layer skipped", "layers": layers}
    (folder / "dsnot.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
