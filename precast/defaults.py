"""The sampling parameters that a checkpoint asks for."""

from __future__ import annotations

import logging
from pathlib import Path

from precast.sampling_params import SamplingParams
from precast.tokenizer import read_generation_config

logger = logging.getLogger("precast")

# Distribution parameters of generation_config.json, and their names here.
_SAMPLING_DEFAULTS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def read_default_sampling(folder: Path) -> SamplingParams:
    """What ``generation_config.json`` in ``folder`` asks for, said once in the log; else SamplingParams' own defaults.

    Raises:
        ValueError: it asks for what cannot work.
    """
    config = read_generation_config(folder)
    given = {ours: config[theirs] for theirs, ours in _SAMPLING_DEFAULTS.items() if config.get(theirs) is not None}
    try:
        params = SamplingParams(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'generation_config.json'}: {error}") from error
    if given:
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        logger.info("sampling defaults from the checkpoint's generation_config: %s", said)
    return params
