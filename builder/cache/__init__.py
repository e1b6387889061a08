"""The build cache: engines by the content of what they are built from. docs/build_cache.md describes it."""
