#!/usr/bin/env python3
"""Add to ``test/fixtures/golden`` what the published DSnoT code makes of the same layers.

    python scripts/make_dsnot_golden.py --dsnot DSNOT_CHECKOUT --model models/smollm2-135m --text build/sotu/calibration.jsonl

Its function for a whole model runs on a model of one block with one linear layer, whose inputs are those of the real
layer, with its defaults and no layer left out. The weights' ties are broken (``without_ties``): they were 4-bit numbers
once, and choices among equal magnitudes would hide all else. Two results are kept for each case: of the code as it is,
and of the code with one condition more, that a row ends when no weight with the sought sign is left. As it is it then
goes on with weights of the other sign, the largest first, which happens where few weights are kept. Written are ``dsnot.json`` (errors in float64) and ``input-moments.safetensors``
(mean and variance of each input, which the Gram matrices of the fixtures do not hold). Needs what make_golden.py needs.
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


STEP = "weight_mask.scatter_(1, pruning_indice, update_mask)"
STOP = "update_mask = update_mask & (pruning_metric * reconstruction_error < 0) & (regrowing_metric * reconstruction_error > 0)"


def without_ties(weight: torch.Tensor) -> torch.Tensor:
    """Each weight times 1 + u / 1000 with u in [0, 1) from its place."""
    place = torch.arange(weight.numel(), dtype=torch.int64)
    noise = ((place * 2654435761) % 2**32).double() / 2**32
    return (weight.double().flatten() * (1 + noise / 1000)).float().reshape(weight.shape)


def load_dsnot(checkout: Path, stops: bool) -> types.ModuleType:
    """lib/prune.py and what it imports, on the CPU; with the condition of the module's docstring where ``stops``."""
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
    source = path.read_text(encoding="utf-8").replace("cuda:0", "cpu").replace("from .", "from lib.")
    if stops:
        before, after = source.rsplit(STEP, 1)  # the last one is that of unstructured pruning
        indent = before[before.rindex("\n") :]
        source = before + STOP + indent + STEP + after
    exec(compile(source, str(path), "exec"), module.__dict__)
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
    peers = {"error": load_dsnot(options.dsnot, False), "errorStopping": load_dsnot(options.dsnot, True)}
    windows = calibration_windows(options.text, Tokenizer.from_file(str(options.model / "tokenizer.json")), 32, 1024, 0)
    inputs = collect_inputs(load_model(options.model), windows)
    moments, layers = {}, {}
    for key in LAYERS:
        weight, gram = read_fixture(folder / f"{key}.safetensors")
        weight = without_ties(weight)
        x = inputs[key].double().reshape(-1, weight.shape[1])
        drift = float((x.T @ x - gram).abs().max() / gram.abs().max())
        if drift > 1e-5:
            raise SystemExit(f"{key}: the Gram matrix of these inputs differs from the fixture's by {drift}")
        moments[f"{key}.mean"] = x.mean(0).float()
        moments[f"{key}.variance"] = inputs[key].double().var(dim=1, unbiased=False).mean(0).float()
        layers[key] = {
            label: {
                initial: {
                    name: relative_error(weight, run_dsnot(peer, weight, inputs[key], initial, Pattern(text)), gram, 0)
                    for name, peer in peers.items()
                }
                for initial in INITIAL
            }
            for label, text in PATTERNS.items()
        }
        print(key, json.dumps(layers[key]), file=sys.stderr)
    save_file(moments, folder / "input-moments.safetensors")
    (folder / "input-moments.safetensors").chmod(0o644)
    golden = {"windows": len(windows), "seqlen": windows.shape[1], "settings": "defaults, no layer skipped, ties broken", "layers": layers}
    (folder / "dsnot.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
