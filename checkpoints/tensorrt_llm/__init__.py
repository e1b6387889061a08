"""TensorRT-LLM's unified checkpoints: config.json and a rank<i>.safetensors for each rank, as its convert_checkpoint.py
scripts wrote them for trtllm-build until that was removed.

Read in the sources of releases 0.9 to 0.20: models/modeling_utils.py, mapping.py, models/llama and models/qwen
(config.py, convert.py), models/convert_utils.py, and docs/source/architecture/checkpoint.md.
"""
