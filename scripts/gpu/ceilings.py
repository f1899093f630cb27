#!/usr/bin/env python3
"""What the machine is, and what it reaches by PyTorch: a large matrix product in float32 (no TF32) and in bfloat16, a large copy.

    python scripts/gpu/ceilings.py --device cuda --out device.json

Rates in FLOP/s and B/s (bytes read and bytes written), the best of some runs on random numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def measure(torch: Any, device: str, size: int) -> dict[str, float]:
    cuda = device.startswith("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False

    def seconds(work: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(5):
            repeats = 4
            if cuda:
                torch.cuda.synchronize()
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                for _ in range(repeats):
                    work()
                end.record()
                torch.cuda.synchronize()
                best = min(best, begin.elapsed_time(end) / 1000 / repeats)
            else:
                began = time.perf_counter()
                for _ in range(repeats):
                    work()
                best = min(best, (time.perf_counter() - began) / repeats)
        return best

    rates = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        rates[name] = 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out))
    source = torch.randn((1 << 30) if cuda else (1 << 24), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    rates["copy"] = 2 * 4 * source.numel() / seconds(lambda: target.copy_(source))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"),
        "nvcc": output_of(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version").split("\n")[-1],
        "ceilings": {},
    }
    try:
        import torch

        report["torch"] = torch.__version__
        report["ceilings"] = measure(torch, options.device, options.size)
    except Exception as error:  # The other stages go on with rates of their own.
        report["failure"] = f"{type(error).__name__}: {error}"
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
