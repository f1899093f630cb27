#!/usr/bin/env python3
"""Write tiny random models of every supported type with the logits that transformers gives.

    python scripts/make_model_fixtures.py --out test/fixtures/models

Each folder holds config.json, model.safetensors (float32) and expected.safetensors: ``tokens``
[2, 40] (U32), ``logits`` [2, 40, vocabulary] (F32, computed in float32), ``perplexity`` [1] (F64, of the
two windows, all tokens but the first scored). Needs torch, transformers and safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

SHAPE = dict(
    vocab_size=120,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.25,
)

LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

CONFIGS = {
    "llama-plain": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama3-rope": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
    "llama-bias-headdim": LlamaConfig(**SHAPE, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-linear-rope": LlamaConfig(
        **SHAPE, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0), tie_word_embeddings=True
    ),
    "mistral-window": MistralConfig(**SHAPE, head_dim=8, sliding_window=11, tie_word_embeddings=False),
    "qwen2-bias": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=False
    ),
    "qwen3-qknorm": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                # Norm weights and biases start as ones and zeros, which would hide mistakes.
                if value.ndim == 1:
                    value.copy_(torch.randn_like(value) * 0.3 + (1.0 if "norm" in key else 0.0))
            tokens = torch.randint(0, config.vocab_size, (2, 40))
            logits = model(tokens).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten())
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file(
            {
                "tokens": tokens.to(torch.uint32),
                "logits": logits.float().contiguous(),
                "perplexity": torch.tensor([math.exp(losses.item())], dtype=torch.float64),
            },
            folder / "expected.safetensors",
        )
        print(json.dumps({"name": name, "largest logit": logits.abs().max().item(), "perplexity": math.exp(losses.item())}))


if __name__ == "__main__":
    main()
