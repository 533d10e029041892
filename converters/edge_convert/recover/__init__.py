"""Recovery: quantised weights learn to predict what the unquantised model does, on the grid that they are stored on.

steps.py          recovery as steps of a conversion
targets.py        what is recovered: the blocks of a GGUF file, or Core ML's palettes
fit.py            fits matrices layer by layer, with error feedback
train.py          trains quantised matrices and norms
gguf_blocks.py    the blocks of a GGUF as codes and parts of a grid, read and written in place
palettes.py       the same of palettes, and their fitting
grids.py          the values that a target can store
masters.py        the numbers that are trained, in steps of a grid
"""
