"""What the ops' plugins for TensorRT share.

plugin_base.py  classes that derive from those of the TensorRT that is loaded, tensorrt or tensorrt_rtx
logger.py       what TensorRT says, kept
creators.py     all creators of this version, for whoever builds or runs plans
"""

PLUGIN_NAMESPACE = "precast"
"""In TensorRT's registry."""
