"""In place of cuda-python, for sessions on a machine without a GPU: a regular package, which wins over namespaces."""
