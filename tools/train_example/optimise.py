"""The training loop: what changes the weights, and how fast.

Shape suffixes: B windows per step, W tokens per window, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from evaluate import perplexity
from recipe import Recipe
from stream import TokenStream, draw_windows
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

REPORT_EVERY = 50  # steps


def train(model: LlamaForCausalLM, stream: TokenStream, recipe: Recipe, held_out: list[Tensor]) -> None:
    """Linear warm-up, then cosine decay. Held-out perplexity is printed on the way and decides nothing."""
    windows = torch.Generator().manual_seed(recipe.seed)
    optimizers = new_optimizers(model, recipe)
    model.train()
    for step in range(recipe.num_steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
        length = recipe.window_lengths[step % len(recipe.window_lengths)]
        inputs_BW, targets_BW = draw_windows(stream, recipe.tokens_per_step // length, length, windows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BWV = model(inputs_BW).logits
        loss = functional.cross_entropy(logits_BWV.float().flatten(0, 1), targets_BW.flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == recipe.num_steps:
            print(
                f"step {step + 1}/{recipe.num_steps}: training loss {loss.item():.3f}, "
                f"held-out perplexity {perplexity(model, held_out, recipe.max_tokens):.1f}",
                flush=True,
            )


def new_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the projections, AdamW for the embedding and the norms; weight decay on matrices only.

    In a trial, 50 steps of two windows of 1024 tokens took this pair to a held-out perplexity of 381, AdamW alone to
    626.
    """
    embedding = model.get_input_embeddings().weight
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    projections = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    adamw_groups = [
        {"params": [embedding], "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            projections,
            lr=recipe.peak_learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(adamw_groups, lr=recipe.peak_learning_rate, betas=(0.9, 0.95)),
    ]


def learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup_steps:
        return recipe.peak_learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.num_steps - recipe.warmup_steps)
    span = recipe.peak_learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
