"""RmsNorm: root-mean-square normalisation of rows, with an optional residual added first."""
