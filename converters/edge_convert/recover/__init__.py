"""Recovery: a quantised file learns to predict what the unquantised model does, on the grid that it is stored on.

steps.py        recovery as steps of a conversion
fit.py          fits the blocks of a GGUF file layer by layer, with error feedback
train.py        trains the blocks of a GGUF file
gguf_blocks.py  the blocks of a GGUF as codes and parts of a grid, read and written in place
grids.py        the values that a target can store
masters.py      the numbers that are trained, in steps of a grid
"""
