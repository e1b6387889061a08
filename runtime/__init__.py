"""Engine -> tokens: the binding of the native library."""
