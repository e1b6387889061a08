"""What the collectives' plugins for TensorRT share.

Why TensorRT must not fold, merge, drop or reorder them, and does not: none has a constant input; no two of a network
have the same inputs; each leads to an output of the network (Send's output is one); and each depends on what the one
before gave, from the embedding's sum or Receive, along the residual stream, to AllGather or Send. So there is one order
in which a network's collectives can run, the same on all ranks of a stage, whatever streams TensorRT uses.

Creators are made by `make_creator(trt, group, errors)`: the module tensorrt_rtx or tensorrt; what plugins that run
meet in, asked each time; and where sentences go, the first of which is the cause of what TensorRT then says.
"""
