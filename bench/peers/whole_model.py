#!/usr/bin/env python3
"""Prune a whole LLaMA-type model with the published PyTorch code and measure it.

The protocol is the one of the published scripts: the windows go through the model block by
block; one pass through the still dense block collects the statistics of all its linear layers;
they are pruned; a second pass through the pruned block makes the inputs of the next. The
solvers are imported from checkouts of their repositories, with the device name changed to the
processor. The model runs in float32 or, with ``--dtype bfloat16``, in what most checkpoints are
stored in. One JSON object is printed.

    python bench/peers/whole_model.py --alps ALPS_CHECKOUT --model models/smollm2-135m \\
        --tokens tokens.json --sparsity 0.5

``--tokens`` is ``{"calibration": [[id, ...], ...], "evaluation": [[id, ...], ...]}``; all windows of
a list have one length. Needs torch, transformers and numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

METHODS = ("alps", "sparsegpt", "wanda", "magnitude")


def load_source(checkout: Path, file: str) -> types.ModuleType:
    """Import one file of a checkout so that it runs without CUDA: names of its device are changed, synchronising is nothing."""
    path = checkout / file
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give the folder of a checkout")
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    source = path.read_text(encoding="utf-8").replace("cuda:0", "cpu")
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        sys.path.remove(str(path.parent))
    return module


class Pattern:
    """A fraction of zeros, or `keep` weights of every `of` inputs."""

    def __init__(self, text: str):
        self.keep, self.of = (int(part) for part in text.split(":")) if ":" in text else (0, 0)
        self.sparsity = 1 - self.keep / self.of if self.of else float(text)

    def as_json(self) -> Any:
        return {"keep": self.keep, "of": self.of} if self.of else self.sparsity


class Alps:
    """ALPS with the settings of its scripts: rho 0.1, a check every 3 iterations, at most 300."""

    def __init__(self, peer: types.ModuleType, linear: nn.Linear):
        self.linear = linear
        self.solver = peer.ALPS_prune(linear, nsamples=0, seqlen=0)
        self.add_batch = self.solver.add_batch

    def prune(self, pattern: Pattern) -> None:
        self.solver.ALPS_admm(sp=pattern.sparsity, nm_n=pattern.keep, nm_m=pattern.of, rho=0.1)
        self.solver.free()


class SparseGpt:
    """SparseGPT with the settings of its scripts: blocks of 128, damping 1 %. Its N of N:M counts the zeros."""

    def __init__(self, peer: types.ModuleType, linear: nn.Linear):
        self.solver = peer.SparseGPT(linear)
        self.add_batch = self.solver.add_batch

    def prune(self, pattern: Pattern) -> None:
        self.solver.fasterprune(pattern.sparsity, prunen=pattern.of - pattern.keep, prunem=pattern.of)
        self.solver.free()


class Wanda:
    """Wanda: statistics from its repository, its score |w| * |x|, compared within an output neuron."""

    def __init__(self, peer: types.ModuleType, linear: nn.Linear):
        self.linear = linear
        self.solver = peer.WrappedGPT(linear)
        self.add_batch = self.solver.add_batch

    def prune(self, pattern: Pattern) -> None:
        weight = self.linear.weight.data
        zero_rows(weight, wanda_score(weight, self.solver.scaler_row), pattern)


class Magnitude:
    """The smallest absolute values of the matrix, or of each group, become zero."""

    def __init__(self, _: Any, linear: nn.Linear):
        self.linear = linear

    def add_batch(self, *_: Any) -> None:
        pass

    def prune(self, pattern: Pattern) -> None:
        weight = self.linear.weight.data
        zero_smallest(weight, weight.abs(), pattern)


SOLVERS: dict[str, tuple[type, str]] = {
    "alps": (Alps, "alps.py"),
    "sparsegpt": (SparseGpt, "sparsegpt.py"),
    "wanda": (Wanda, "lib/layerwrapper.py"),
    "magnitude": (Magnitude, ""),
}


def wanda_score(weight: torch.Tensor, mean_square: torch.Tensor) -> torch.Tensor:
    return weight.abs() * mean_square.sqrt()


def zero_rows(weight: torch.Tensor, score: torch.Tensor, pattern: Pattern) -> None:
    """Zero the lowest scores of each row, or of each group."""
    size, count = (pattern.of, pattern.of - pattern.keep) if pattern.of else (weight.shape[1], int(weight.shape[1] * pattern.sparsity))
    groups = score.reshape(-1, size)
    lowest = groups.sort(dim=1, stable=True).indices[:, :count]
    weight.reshape(-1, size).scatter_(1, lowest, 0.0)


def zero_smallest(weight: torch.Tensor, score: torch.Tensor, pattern: Pattern) -> None:
    """Zero the lowest scores of the whole matrix, or of each group."""
    if pattern.of:
        return zero_rows(weight, score, pattern)
    count = weight.numel() - round((1 - pattern.sparsity) * weight.numel())
    weight.reshape(-1)[score.reshape(-1).argsort(stable=True)[:count]] = 0


def linear_layers(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in block.named_modules() if type(module) is nn.Linear}


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.config.use_cache = False
    return model


class Caught(Exception):
    pass


def block_inputs(model: Any, windows: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """What enters the first block for every window, and the other arguments (mask, positions), equal for all windows."""
    blocks = model.model.layers
    inputs = torch.zeros((*windows.shape, model.config.hidden_size), dtype=model.dtype)
    arguments: dict[str, Any] = {}

    class Catcher(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner
            self.index = 0

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, hidden: torch.Tensor, **rest: Any) -> None:
            inputs[self.index] = hidden[0]
            self.index += 1
            arguments.update(rest)
            raise Caught

    blocks[0] = Catcher(blocks[0])
    for window in windows:
        with contextlib.suppress(Caught):
            model(window[None])
    blocks[0] = blocks[0].inner
    for name in ("past_key_values", "cache"):
        arguments.pop(name, None)
    return inputs, arguments


def run_block(block: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, arguments: dict[str, Any]) -> None:
    for index in range(len(inputs)):
        result = block(inputs[index][None], **arguments)
        outputs[index] = result[0][0] if isinstance(result, tuple) else result[0]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def prune_model(
    model: Any,
    windows: torch.Tensor,
    make_solver: Callable[[nn.Linear], Any],
    pattern: Pattern,
    block_count: int,
    clock: Clock,
) -> dict[str, int]:
    """Prune the first blocks in place. Returns the weights and the non-zeros of the pruned layers."""
    with clock.phase("embed"):
        inputs, arguments = block_inputs(model, windows)
        outputs = torch.zeros_like(inputs)
    totals = {"weights": 0, "nonZeros": 0}
    for index in range(block_count):
        block = model.model.layers[index]
        layers = linear_layers(block)
        solvers = {name: make_solver(linear) for name, linear in layers.items()}

        def hook(solver: Any) -> Callable[..., None]:
            return lambda _, inp, out: solver.add_batch(inp[0].data, out.data)

        with clock.phase("statistics"):
            handles = [layers[name].register_forward_hook(hook(solver)) for name, solver in solvers.items()]
            run_block(block, inputs, outputs, arguments)
            for handle in handles:
                handle.remove()
        for name, linear in layers.items():
            with clock.phase("prune"), contextlib.redirect_stdout(sys.stderr):
                solvers[name].prune(pattern)
            totals["weights"] += linear.weight.numel()
            totals["nonZeros"] += int((linear.weight != 0).sum())
        with clock.phase("propagate"):
            run_block(block, inputs, outputs, arguments)
        inputs, outputs = outputs, inputs
        print(f"block {index + 1} of {block_count}: {clock.seconds['prune']:.1f} s of pruning so far", file=sys.stderr)
    return totals


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """exp of the mean negative log likelihood of all tokens but the first of each window."""
    inputs, arguments = block_inputs(model, windows)
    outputs = torch.zeros_like(inputs)
    for block in model.model.layers:
        run_block(block, inputs, outputs, arguments)
        inputs, outputs = outputs, inputs
    total = 0.0
    for hidden, window in zip(inputs, windows):
        logits = model.lm_head(model.model.norm(hidden[None]))[0]
        total += nn.functional.cross_entropy(logits[:-1].float(), window[1:], reduction="sum").double().item()
    return float(torch.tensor(total / (len(windows) * (windows.shape[1] - 1)), dtype=torch.float64).exp())


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--tokens", type=Path, required=True, help="JSON file with calibration and evaluation windows")
    parser.add_argument("--method", choices=METHODS, default="alps")
    parser.add_argument("--alps", type=Path, help="checkout of mazumder-lab/ALPS")
    parser.add_argument("--sparsegpt", type=Path, help="checkout of IST-DASLab/sparsegpt")
    parser.add_argument("--wanda", type=Path, help="checkout of locuslab/wanda")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--sparsity", type=Pattern, dest="pattern", help="fraction of zeros, for example 0.5")
    target.add_argument("--pattern", type=Pattern, dest="pattern", help="weights kept of every group, for example 2:4")
    parser.add_argument("--blocks", type=int, help="prune only the first blocks")
    parser.add_argument("--calibration-windows", type=int, help="use only the first windows")
    parser.add_argument("--evaluation-windows", type=int, help="use only the first windows")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights and activations")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--skip-dense", action="store_true", help="do not evaluate the dense model")
    parser.add_argument("--save", type=Path, help="folder for the pruned model")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = parse_arguments()
    solver_class, file = SOLVERS[options.method]
    checkout = getattr(options, options.method, None)
    if file and checkout is None:
        raise SystemExit(f"--method {options.method} needs --{options.method} FOLDER, a checkout of its repository")
    peer = load_source(checkout, file) if file else None
    if options.threads:
        torch.set_num_threads(options.threads)
    tokens = json.loads(options.tokens.read_text())
    calibration = torch.tensor(tokens["calibration"][: options.calibration_windows])
    evaluation = torch.tensor(tokens["evaluation"][: options.evaluation_windows])

    dtype = getattr(torch, options.dtype)
    clock = Clock()
    peak = {"imports": peak_memory()}
    with clock.phase("load"):
        model = load_model(options.model, dtype)
    peak["load"] = peak_memory()
    block_count = min(options.blocks or len(model.model.layers), len(model.model.layers))
    totals = prune_model(model, calibration, lambda linear: solver_class(peer, linear), options.pattern, block_count, clock)
    if options.save:
        with clock.phase("save"):
            model.save_pretrained(options.save)
    peak["prune"] = peak_memory()
    seconds_to_prune = sum(clock.seconds.values())

    result: dict[str, Any] = {}
    if len(evaluation):
        with clock.phase("evaluate"):
            result["prunedPerplexity"] = perplexity(model, evaluation)
        peak["evaluate"] = peak_memory()
        if not options.skip_dense:
            del model
            with clock.phase("evaluateDense"):
                result["densePerplexity"] = perplexity(load_model(options.model, dtype), evaluation)
    print(
        json.dumps(
            {
                "method": options.method,
                "pattern": options.pattern.as_json(),
                "blocks": block_count,
                "calibrationWindows": list(calibration.shape),
                "evaluationWindows": list(evaluation.shape),
                **totals,
                "sparsity": 1 - totals["nonZeros"] / totals["weights"],
                **result,
                "secondsToPrune": round(seconds_to_prune, 3),
                "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
                "peakBytes": peak,
                "dtype": options.dtype,
                "threads": torch.get_num_threads(),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
