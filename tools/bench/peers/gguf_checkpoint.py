"""A bf16 Llama checkpoint as a GGUF file for llama.cpp, bit for bit: nothing is rounded or quantised.

llama.cpp's own converter is no part of its Python package. This one knows plain Llama checkpoints, which is what
make_checkpoint.py writes, and refuses what it does not know. It follows these rules of GGUF's Llama architecture:
1. Tensors have llama.cpp's names; see `gguf_name`.
2. Matrices stay bf16, vectors (the norms) become fp32.
3. llama.cpp rotates neighbouring rows of a head, (0, 1), (2, 3) ..., where Hugging Face rotates row i with row i + d/2:
   the rows of q and k are reordered; see `interleave_rope_rows`.
4. The vocabulary is a byte-level BPE, named "gpt2" there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKEN_NORMAL, TOKEN_CONTROL = 1, 3  # of llama.cpp's enumeration of token types


def gguf_name(name: str) -> str:
    """The name in GGUF: "blk.3.ffn_up.weight" for "model.layers.3.mlp.up_proj.weight".

    Raises:
        ValueError: a tensor that a plain Llama does not have, such as a bias.
    """
    stem, _, suffix = name.rpartition(".")
    if suffix == "weight":
        if stem in _OUTER_NAMES:
            return f"{_OUTER_NAMES[stem]}.weight"
        model, _, rest = stem.partition(".layers.")
        layer, _, part = rest.partition(".")
        if model == "model" and layer.isdecimal() and part in _LAYER_NAMES:
            return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"
    raise ValueError(f"{name} is no tensor of a plain Llama checkpoint; this converter knows no other model")


def interleave_rope_rows(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """[num_heads * d, columns]: row i of a head becomes row 2i, row i + d/2 becomes row 2i + 1."""
    rows, columns = weight.shape
    halves: NDArray[Any] = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    interleaved: NDArray[Any] = halves.swapaxes(1, 2).reshape(rows, columns)
    return interleaved


def check_config(config: dict[str, Any]) -> None:
    """Raises ValueError where llama.cpp would need metadata that this converter does not write."""
    if config["model_type"] != "llama":
        raise ValueError(f"model_type is {config['model_type']!r}; this converter knows 'llama' only")
    for name in ("rope_scaling", "attention_bias", "mlp_bias"):
        if config.get(name):
            raise ValueError(f"{name} is {config[name]!r}; this converter knows Llama without it only")


def read_tensors(file: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """The tensors of a safetensors file, mapped, as the 16 bits of each bf16.

    Raises:
        ValueError: a tensor is not bf16.
    """
    data = np.memmap(file, dtype=np.uint8, mode="r")
    header_size = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + header_size]))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}; this converter knows BF16 only")
        begin, end = (8 + header_size + offset for offset in entry["data_offsets"])
        yield name, data[begin:end].view("<u2").reshape(entry["shape"])


def to_gguf(name: str, tensor: NDArray[np.uint16], config: dict[str, Any]) -> NDArray[Any]:
    """Rules 2 and 3."""
    if tensor.ndim == 1:
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    if name.endswith("q_proj.weight"):
        return interleave_rope_rows(tensor, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return interleave_rope_rows(tensor, config["num_key_value_heads"])
    return tensor


def read_vocabulary(file: Path) -> tuple[list[str], list[int], list[str]]:
    """Tokens by id, the type of each, and the merges, from a tokenizer.json."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    ids = dict(tokenizer["model"]["vocab"])
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    ids |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    return tokens, [TOKEN_CONTROL if token in special else TOKEN_NORMAL for token in tokens], merges


def write_gguf(checkpoint: Path, output: Path) -> None:
    """Converts the checkpoint in the folder `checkpoint`; one tensor at a time is in memory."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    check_config(config)
    writer = gguf.GGUFWriter(output, "llama")
    _add_metadata(writer, config)
    tokens, types, merges = read_vocabulary(checkpoint / "tokenizer.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    tensors = [pair for file in sorted(checkpoint.glob("*.safetensors")) for pair in read_tensors(file)]
    for name, tensor in tensors:
        is_vector = tensor.ndim == 1
        dtype = np.dtype(np.float32 if is_vector else np.uint16)
        kind = None if is_vector else gguf.GGMLQuantizationType.BF16
        writer.add_tensor_info(gguf_name(name), tensor.shape, dtype, tensor.size * dtype.itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(to_gguf(name, tensor, config)))
    writer.close()


def _add_metadata(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
