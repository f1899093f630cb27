#!/usr/bin/env python3
"""One layer pruned by the published PyTorch code, and the errors of anybody's weights, in float64.

    python bench/peers/layer.py --device cuda:0 --shape 4096x4096 --folder DATA --sparsity 0.7 --alps ALPS --sparsegpt SPARSEGPT

DATA holds raw little-endian float32: ``weight.f32`` [outputs, inputs], ``gram.f32`` [inputs, inputs] and, to be measured,
``ours-NAME.f32`` [outputs, inputs]. ALPS and SPARSEGPT are checkouts of mazumder-lab/ALPS and IST-DASLab/sparsegpt. A line of
JSON is printed as soon as each result is there: ``{"name", "seconds", "error", "sparsity"}``.

The solvers are imported from the checkouts with the name of their device changed to the one asked for. ALPS comes twice: as
published, with its eigendecomposition and its factors on the processor (``alps``), and with all its tensors left on the
device (``alps-device``): the same code with `.cpu()` changed to `.to(dev)`. Times are from the Gram matrix on the device to
the pruned weight on the device, with the device waited for before and after; the first run of a smaller problem is not
counted. ALPS reports its error itself, which is not used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

METHODS = ("sparsegpt", "alps-device", "alps")


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


class Peers:
    def __init__(self, device: torch.device, alps: Path, sparsegpt: Path, tokens: int):
        self.device, self.tokens = device, tokens
        name = {"cuda:0": str(device)}
        self.sources = {
            "alps": load_source(alps, "alps.py", name),
            "alps-device": load_source(alps, "alps.py", {**name, ".cpu()": ".to(dev)"}),
            "sparsegpt": load_source(sparsegpt, "sparsegpt.py", name),
        }

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def prune(self, method: str, weight: torch.Tensor, gram: torch.Tensor, sparsity: float) -> tuple[float, torch.Tensor]:
        """Seconds and the pruned weight, with the settings of the published scripts."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=self.device)
        linear.weight.data = weight.clone()
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
                solver.fasterprune(sparsity)
            else:
                solver.ALPS_admm(sp=sparsity, rho=0.1)
        self.wait()
        seconds = time.perf_counter() - began
        solver.free()
        return seconds, linear.weight.data


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--shape", required=True, help="OUTPUTSxINPUTS")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=1, help="that the Gram matrix was summed over")
    parser.add_argument("--alps", type=Path, required=True)
    parser.add_argument("--sparsegpt", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs counts")
    parser.add_argument("--repeat-seconds", type=float, default=8, help="a run of more than this is not repeated")
    return parser.parse_args()


def emit(**result: Any) -> None:
    print(json.dumps(result), flush=True)


@torch.no_grad()
def main() -> None:
    options = parse_arguments()
    if options.device.type != "cuda":
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.empty_cache = lambda: None
    stub_transformers()
    rows, columns = (int(part) for part in options.shape.split("x"))
    weight = read(options.folder / "weight.f32", rows, columns, options.device)
    gram = read(options.folder / "gram.f32", columns, columns, options.device)
    emit(name="torch", version=torch.__version__, device=str(options.device), threads=torch.get_num_threads())
    for path in sorted(options.folder.glob("ours-*.f32")):
        pruned = read(path, rows, columns, options.device)
        emit(name=path.stem, error=relative_error(weight, pruned, gram), sparsity=(pruned == 0).double().mean().item())
        del pruned

    peers = Peers(options.device, options.alps, options.sparsegpt, options.tokens)
    small = min(256, rows, columns)
    warm_weight, warm_gram = weight[:small, :small].clone(), gram[:small, :small].clone()
    for method in options.methods.split(","):
        try:
            peers.prune(method, warm_weight, warm_gram, options.sparsity)
            runs: list[float] = []
            while len(runs) < options.repeat and (not runs or runs[-1] < options.repeat_seconds):
                seconds, pruned = peers.prune(method, weight, gram, options.sparsity)
                runs.append(seconds)
            sparsity = (pruned == 0).double().mean().item()
            emit(name=method, seconds=min(runs), runs=runs, error=relative_error(weight, pruned, gram), sparsity=sparsity)
        except Exception as error:  # One method's failure must not take the others' results.
            emit(name=method, failure=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
