"""TensorRT-LLM's unified checkpoints: config.json and a rank<i>.safetensors for each rank, as its convert_checkpoint.py
scripts wrote them for trtllm-build until that was removed.

Read in the sources on the way to releases 0.9 (April 2024), 0.10, 0.12 and 0.17 (December 2024), and in later files
that know Qwen 3: tensorrt_llm/mapping.py, models/modeling_utils.py, models/convert_utils.py,
models/model_weights_loader.py, models/llama and models/qwen (config.py, convert.py, model.py), layers (attention.py,
linear.py, embedding.py), commands/prune.py, and docs/source/architecture/checkpoint.md; and in configs that users of
0.13 and 0.17 published.
"""
