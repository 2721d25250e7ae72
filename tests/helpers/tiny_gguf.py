"""Tiny random models in GGUF files, written with the package gguf, and the same models in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}


def byte_tokens() -> list[str]:
    """The 256 bytes as byte-level tokenizers write them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


_SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL_TOKENS) + 256 + 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
"""Widths are multiples of a quantized block."""


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """A Llama in float32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()


def tiny_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    """A Qwen2 in float32; queries, keys and values have biases other than zero."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**_SIZES)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


def write_tiny_gguf(file: Path, model: PreTrainedModel, architecture: str = "llama", quantized: bool = False) -> None:
    """Write the model with a byte-level tokenizer and a chat template. quantized: matrices in blocks of Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_name("Tiny Random")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*SPECIAL_TOKENS, *byte_tokens(), "th"])
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, array in tensors_of(model).items():
        if quantized and array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The weights under their names in GGUF files. In a Llama, rows of queries and keys are in llama.cpp's order."""
    config, found = model.config, {}
    permuted = config.model_type == "llama"
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if name == "model.embed_tokens.weight":
            found["token_embd.weight"] = array
        elif name == "model.norm.weight":
            found["output_norm.weight"] = array
        elif name.startswith("model.layers."):
            place, _, ending = name.removeprefix("model.layers.").rpartition(".")
            number, _, part = place.partition(".")
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            if part in heads and permuted:
                pairs = array.reshape(heads[part], 2, -1, array.shape[1])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
            found[f"blk.{number}.{_NAMES[part]}.{ending}"] = np.ascontiguousarray(array)
    return found
