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
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

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

LONG_ROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.3, 1.6],
    long_factor=[1.0, 1.5, 2.5, 6.0],
    original_max_position_embeddings=32,
)

SMALL = dict(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=12,
    max_position_embeddings=256,
    initializer_range=0.25,
    tie_word_embeddings=True,
)

YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)

LONG_ROPE_FACTOR = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    factor=32.0,
    short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.6],
    long_factor=[1.0, 1.2, 1.5, 2.5, 4.0, 6.0],
    original_max_position_embeddings=64,
)

OPT = dict(
    vocab_size=120,
    hidden_size=48,
    ffn_dim=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    max_position_embeddings=64,
    init_std=0.25,
    pad_token_id=1,
    dropout=0.0,
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
    "phi3-fused": Phi3Config(**SHAPE, pad_token_id=0, partial_rotary_factor=0.5, tie_word_embeddings=False),
    "phi3-longrope": Phi3Config(**SHAPE, pad_token_id=0, rope_parameters=LONG_ROPE, original_max_position_embeddings=32, tie_word_embeddings=False),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=7, query_pre_attn_scalar=20, attn_logit_softcapping=5.0, final_logit_softcapping=9.0),
    "gemma3": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 3}, head_dim=16, sliding_window=7, query_pre_attn_scalar=20, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "opt-pre": OPTConfig(**OPT, do_layer_norm_before=True),
    "opt-post": OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=32),
    "gpt2": GPT2Config(vocab_size=120, n_embd=48, n_layer=2, n_head=6, n_positions=256, initializer_range=0.25),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False),
    "qwen3-moe": Qwen3MoeConfig(
        **{**SHAPE, "num_hidden_layers": 3}, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False, mlp_only_layers=[1], tie_word_embeddings=False
    ),
    "qwen3-moe-fused": Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True, tie_word_embeddings=False
    ),
    "gpt2-by-layer": GPT2Config(vocab_size=120, n_embd=48, n_layer=2, n_head=6, n_positions=64, initializer_range=0.25, scale_attn_by_inverse_layer_idx=True),
    "llama-yarn": LlamaConfig(**SMALL, rope_parameters=YARN),
    "llama-longrope-factor": LlamaConfig(**SMALL, rope_parameters=LONG_ROPE_FACTOR),
    "qwen3-moe-window": Qwen3MoeConfig(
        **SMALL, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12, use_sliding_window=True, sliding_window=9
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    for seed, (name, config) in enumerate(CONFIGS.items()):
        if (out / name / "expected.safetensors").exists():
            continue  # numbers that tests hold stay as they were made
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
        if name.endswith("-fused") and "moe" in name:
            # As the module has them: all experts of a layer in one tensor.
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
        else:
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
