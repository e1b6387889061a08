"""Everything at rest: Hugging Face directories, model configs, name maps, the engine directory format."""
