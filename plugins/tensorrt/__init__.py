"""What the ops' plugins for TensorRT share.

fields.py       attributes of an op as fields of a plugin, and back
kernel_sets.py  kernels in fields: which plugin of a plan carries them
plugin_base.py  classes that derive from those of the TensorRT that is loaded, tensorrt or tensorrt_rtx
logger.py       what TensorRT says, kept
creators.py     all creators of this version, for whoever builds or runs plans
"""
