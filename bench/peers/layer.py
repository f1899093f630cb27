#!/usr/bin/env python3
"""One layer pruned by the published PyTorch code, and the errors of anybody's weights, in float64.

    python bench/peers/layer.py --device cuda:0 --shape 4096x4096 --folder DATA --sparsity 0.7 --alps ALPS --sparsegpt SPARSEGPT

DATA holds raw little-endian float32: ``weight.f32`` [outputs, inputs], ``gram.f32`` [inputs, inputs], for Wanda and DSnoT
``activations.f32`` [tokens, inputs] and, to be measured, ``ours-NAME.f32`` [outputs, inputs]. ``--alps``, ``--sparsegpt``, ``--wanda``
and ``--dsnot`` are checkouts of mazumder-lab/ALPS, IST-DASLab/sparsegpt, locuslab/wanda (also for magnitude) and zyxxmu/DSnoT. A
line of JSON is printed as soon as each result is there: ``{"name", "seconds", "error", "sparsity"}``.

The solvers are imported from the checkouts with the name of their device changed to the one asked for. ALPS comes twice: as
published, with its eigendecomposition and its factors on the processor (``alps``), and with all its tensors left on the
device (``alps-device``): the same code with `.cpu()` changed to `.to(dev)`. Times are from the Gram matrix on the device to
the pruned weight on the device, with the device waited for before and after; the first run of a smaller problem is not
counted. ALPS reports its error itself, which is not used. Wanda, DSnoT and magnitude come as functions for a whole model: they run on
one of a single layer, and the forward passes are not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

METHODS = ("magnitude", "wanda", "dsnot", "sparsegpt", "alps-device", "alps")


class Pattern:
    """A fraction of zeros, or `keep` weights of every `of` inputs."""

    def __init__(self, text: str):
        self.keep, self.of = (int(part) for part in text.split(":")) if ":" in text else (0, 0)
        self.sparsity = 1 - self.keep / self.of if self.of else float(text)


def stub_transformers() -> None:
    """The solvers ask transformers for one class, to compare types with."""
    module = types.ModuleType("transformers")
    module.Conv1D = type("Conv1D", (nn.Module,), {})  # type: ignore[attr-defined]
    sys.modules["transformers"] = module


def load_source(checkout: Path, file: str, changes: dict[str, str]) -> types.ModuleType:
    """Import one file of a checkout after text replacements."""
    path = checkout / file
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give the folder of a checkout")
    source = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        source = source.replace(old, new)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        sys.path.remove(str(path.parent))
    return module


def load_model_source(checkout: Path, file: str, changes: dict[str, str]) -> types.ModuleType:
    """The same for a file of a package `lib`, without what it imports to read data and to evaluate."""
    for name in [name for name in sys.modules if name.split(".")[0] == "lib"]:
        del sys.modules[name]  # of another checkout
    for name in ("data", "eval", "save_results"):
        stub = types.ModuleType(f"lib.{name}")
        stub.get_loaders = lambda *_, **__: (None, None)  # type: ignore[attr-defined]
        stub.eval_ppl = stub.save_time_result = lambda *_, **__: None  # type: ignore[attr-defined]
        sys.modules[stub.__name__] = stub
    sys.path.insert(0, str(checkout))
    try:
        return load_source(checkout, file, {**changes, "from .": "from lib."})
    finally:
        sys.path.remove(str(checkout))


def read(path: Path, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.from_file(str(path), shared=False, size=rows * columns, dtype=torch.float32).reshape(rows, columns).to(device)


def relative_error(dense: torch.Tensor, pruned: torch.Tensor, gram: torch.Tensor) -> float:
    """tr((W - V) G (W - V)') / tr(W G W') in float64, in pieces of rows."""
    lost = whole = 0.0
    double = gram.double()
    for start in range(0, dense.shape[0], 1024):
        weight = dense[start : start + 1024].double()
        difference = pruned[start : start + 1024].double() - weight
        lost += ((difference @ double) * difference).sum().item()
        whole += ((weight @ double) * weight).sum().item()
    return lost / whole


class OneLayer(nn.Module):
    """A block whose only linear layer is the one to prune."""

    def __init__(self, layer: nn.Linear, on_forward: Callable[[], None]):
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.x_proj = layer
        self.on_forward = on_forward

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.on_forward()
        return (self.self_attn.x_proj(x),)


class Peers:
    def __init__(self, device: torch.device, checkouts: dict[str, Path | None], activations: torch.Tensor | None, tokens: int):
        self.device, self.activations, self.tokens = device, activations, tokens
        name = {"cuda:0": str(device)}
        files: dict[str, tuple[str, str, dict[str, str]]] = {
            "alps": ("alps", "alps.py", name),
            "alps-device": ("alps", "alps.py", {**name, ".cpu()": ".to(dev)"}),
            "sparsegpt": ("sparsegpt", "sparsegpt.py", name),
            "wanda": ("wanda", "lib/prune.py", {**name, ".cuda()": ".to(device)"}),
            "magnitude": ("wanda", "lib/prune.py", {**name, ".cuda()": ".to(device)"}),
            "dsnot": ("dsnot", "lib/prune.py", name),
        }
        self.sources = {
            method: load_model_source(checkout, file, changes) if file.startswith("lib/") else load_source(checkout, file, changes)
            for method, (peer, file, changes) in files.items()
            if (checkout := checkouts[peer])
        }

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def prune(self, method: str, weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> tuple[float, torch.Tensor]:
        """Seconds and the pruned weight, with the settings of the published scripts."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=self.device)
        linear.weight.data = weight.clone()
        if method in ("wanda", "dsnot", "magnitude"):
            return self.prune_model(method, linear, pattern), linear.weight.data
        if method == "sparsegpt":
            solver = self.sources[method].SparseGPT(linear)
            # Its sums are means over samples, twice; a factor changes nothing in what it prunes.
            solver.H = gram * (2 / self.tokens)
        else:
            solver = self.sources[method].ALPS_prune(linear, nsamples=0, seqlen=0)
            solver.XtX = gram.clone()
        self.wait()
        began = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            if method == "sparsegpt":
                solver.fasterprune(pattern.sparsity, prunen=pattern.of - pattern.keep, prunem=pattern.of)
            else:
                solver.ALPS_admm(sp=pattern.sparsity, nm_n=pattern.keep, nm_m=pattern.of, rho=0.1)
        self.wait()
        seconds = time.perf_counter() - began
        solver.free()
        return seconds, linear.weight.data

    def prune_model(self, method: str, linear: nn.Linear, pattern: Pattern) -> float:
        """Functions for a whole model, on one of a single layer. From where it says which layer it prunes to the next forward pass."""
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            self.wait()
            marks.setdefault(name, time.perf_counter())

        def on_print(*parts: Any) -> None:
            if str(parts[0]).startswith("pruning layer"):
                mark("began")

        module = self.sources[method]
        block = OneLayer(linear, lambda: mark("ended") if "began" in marks else None)
        config = types.SimpleNamespace(use_cache=False)
        inner = types.SimpleNamespace(layers=[block])
        tokens, columns = self.tokens, linear.weight.shape[1]
        model = types.SimpleNamespace(config=config, model=inner, hf_device_map={}, seqlen=tokens)
        inputs = self.activations[:, :columns].reshape(1, -1, columns) if self.activations is not None else torch.zeros(1, 1, columns)
        outputs = torch.zeros(*inputs.shape[:2], linear.weight.shape[0], device=self.device)
        module.prepare_calibration_input = lambda *_: (inputs, outputs, None, None)  # type: ignore[attr-defined]
        module.print = on_print  # type: ignore[attr-defined]
        args = types.SimpleNamespace(
            nsamples=1, seed=0, sparsity_ratio=pattern.sparsity, use_variant=False, initial_method="wanda", skip_layer="no_skip",
            skip_sub_layer="no_skip", without_DSnoT=False, without_same_sign=True, pow_of_var_regrowing=1, pow_of_var_pruning=1,
            max_cycle_time=50, update_threshold=0.1, get_time_overhead=False,
        )  # fmt: skip
        if method == "magnitude":
            mark("began")
        function = getattr(module, {"wanda": "prune_wanda", "magnitude": "prune_magnitude", "dsnot": "prune_DSnoT"}[method])
        function(args, model, None, self.device, prune_n=pattern.of - pattern.keep, prune_m=pattern.of)
        mark("ended")
        return marks["ended"] - marks["began"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--shape", required=True, help="OUTPUTSxINPUTS")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sparsity", type=Pattern, default="0.7", help="fraction of zeros, or weights kept of every group: 2:4")
    parser.add_argument("--tokens", type=int, default=1, help="that the Gram matrix was summed over")
    for name in ("alps", "sparsegpt", "wanda", "dsnot"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--methods", help=f"default: {','.join(METHODS)}, those whose checkout is given")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs counts")
    parser.add_argument("--repeat-seconds", type=float, default=4, help="a run of more than this is not repeated")
    return parser.parse_args()


def scheduled() -> tuple[int, int]:
    """Nanoseconds for which this process's threads have run, and have waited for a core."""
    try:
        parts = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:
        return 0, 0
    return sum(int(part[0]) for part in parts), sum(int(part[1]) for part in parts)


def emit(**result: Any) -> None:
    print(json.dumps(result), flush=True)


@torch.no_grad()
def main() -> None:
    options = parse_arguments()
    if options.device.type != "cuda":
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.empty_cache = lambda: None
    stub_transformers()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, columns = (int(part) for part in options.shape.split("x"))
    weight = read(options.folder / "weight.f32", rows, columns, options.device)
    gram = read(options.folder / "gram.f32", columns, columns, options.device)
    emit(name="torch", version=torch.__version__, device=str(options.device), threads=torch.get_num_threads())
    for path in sorted(options.folder.glob("ours-*.f32")):
        pruned = read(path, rows, columns, options.device)
        emit(name=path.stem, error=relative_error(weight, pruned, gram), sparsity=(pruned == 0).double().mean().item())
        del pruned

    path = options.folder / "activations.f32"
    activations = read(path, options.tokens, columns, options.device) if path.exists() else None
    checkouts = {name: getattr(options, name) for name in ("alps", "sparsegpt", "wanda", "dsnot")}
    peers = Peers(options.device, checkouts, activations, options.tokens)
    methods = options.methods.split(",") if options.methods else [name for name in METHODS if name in peers.sources]
    small = min(256, rows, columns)
    warm_weight, warm_gram = weight[:small, :small].clone(), gram[:small, :small].clone()
    for method in methods:
        try:
            with contextlib.suppress(Exception):  # DSnoT as published needs more weights a row than it makes swaps
                peers.prune(method, warm_weight, warm_gram, options.sparsity)
            runs: list[float] = []
            waiting: list[float] = []
            while len(runs) < options.repeat and (not runs or runs[-1] < options.repeat_seconds):
                ran, waited = scheduled()
                seconds, pruned = peers.prune(method, weight, gram, options.sparsity)
                now_ran, now_waited = scheduled()
                runs.append(seconds)
                waiting.append((now_waited - waited) / max(1, now_ran - ran + now_waited - waited))
            sparsity = (pruned == 0).double().mean().item()
            of_best = waiting[runs.index(min(runs))]
            emit(name=method, seconds=min(runs), runs=runs, waiting=of_best, error=relative_error(weight, pruned, gram), sparsity=sparsity)
        except Exception as error:  # One method's failure must not take the others' results.
            emit(name=method, failure=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
