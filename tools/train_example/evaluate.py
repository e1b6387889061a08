"""What the model card reports: perplexity and samples.

Shape suffixes: W tokens per window, T tokens of a text, V vocabulary; 1 is a batch of one.
"""

from __future__ import annotations

import math

import torch
from model_card import Sample
from tokenizer import BOS_ID
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLE_TOKENS = 96


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, documents: list[Tensor], window_tokens: int) -> float:
    """exp of the mean negative log-likelihood per token, eos included; windows do not overlap, each begins with bos.

    Leaves the model in the mode (training or not) in which it was.
    """
    was_training = model.training
    model.eval()
    total_nats, total_tokens = 0.0, 0
    for targets_1W in (window[None] for document in documents for window in document.split(window_tokens)):
        inputs_1W = functional.pad(targets_1W[:, :-1], (1, 0), value=BOS_ID)
        logits_WV = model(inputs_1W).logits[0].float()
        total_nats += functional.cross_entropy(logits_WV, targets_1W[0], reduction="sum").item()
        total_tokens += targets_1W.numel()
    model.train(was_training)
    return math.exp(total_nats / total_tokens)


def draw_sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, greedy: bool, seed: int
) -> Sample:
    """Continues `prompt` until eos or `SAMPLE_TOKENS` tokens; sampling uses generation_config.json's settings."""
    torch.manual_seed(seed)
    prompt_1T = tokenizer(prompt, return_tensors="pt")["input_ids"]
    settings = GenerationConfig.from_dict(model.generation_config.to_dict())
    settings.max_new_tokens = SAMPLE_TOKENS
    if greedy:
        settings.do_sample, settings.temperature, settings.top_p = False, 1.0, 1.0
    continued_1T = model.generate(prompt_1T, generation_config=settings)  # type: ignore[misc]  # transformers types self twice
    return Sample(prompt, greedy, str(tokenizer.decode(continued_1T[0], skip_special_tokens=True)))
