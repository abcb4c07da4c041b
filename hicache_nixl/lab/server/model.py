"""``model.py FOLDER small|larger``: a Llama of 0.6 or 27 million random weights, without hub and tokenizer.

The weights are wide enough that attention, and so the KV cache, decides the output: a page with wrong bytes changes it.
Run by the interpreter of a server, with the transformers of its release.
"""

import os
import sys

import torch

SIZES = {
    "small": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.08,
    },
    "larger": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "initializer_range": 0.05,
    },
}


def make(folder: str, size: str) -> None:
    """Make the whole folder, or nothing of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        head_dim=64,
        vocab_size=1024,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        **SIZES[size],
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    beside = f"{folder}.{os.getpid()}"
    model.save_pretrained(beside)
    os.rename(beside, folder)


if __name__ == "__main__":
    make(*sys.argv[1:])
