#!/usr/bin/env python3
"""Make the token windows that whole_model.py and alps-prune are compared on.

Calibration: windows at random places of random documents that are long enough, as the published scripts draw them.
Evaluation: the held-out documents joined by a blank line, tokenised once, cut into windows without overlap.

    node scripts/sotu-split.mjs sotu
    python bench/peers/make_tokens.py --tokenizer models/smollm2-135m/tokenizer.json --text sotu --out tokens.json

Needs tokenizers (installed with transformers).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--text", type=Path, required=True, help="folder with calibration.jsonl and held-out.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    length, draw = arguments.length, random.Random(arguments.seed)
    documents = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts(arguments.text / "calibration.jsonl")]
    documents = [ids for ids in documents if len(ids) > length]
    if not documents:
        raise SystemExit(f"no document is longer than {length} tokens")
    calibration = []
    for _ in range(arguments.windows):
        ids = draw.choice(documents)
        start = draw.randint(0, len(ids) - length - 1)
        calibration.append(ids[start : start + length])
    joined = "\n\n".join(texts(arguments.text / "held-out.jsonl"))
    ids = tokenizer.encode(joined, add_special_tokens=False).ids
    evaluation = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    arguments.out.write_text(json.dumps({"calibration": calibration, "evaluation": evaluation}))
    print(f"{len(calibration)} calibration and {len(evaluation)} evaluation windows of {length} tokens in {arguments.out}")


if __name__ == "__main__":
    main()
