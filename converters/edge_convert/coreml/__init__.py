"""Core ML packages: made from a checkpoint on any system, run on a Mac, evaluated anywhere.

steps.py       Core ML as steps of a conversion
export.py      checkpoint -> package
decoder.py     sizes, switches and rotary tables of a model
model.py       the decoder as a MIL program
quantise.py    chooses how each matrix is stored
weights.py     the encodings of a matrix
grids.py       the numbers of quantisation
calibrate.py   the inputs of each matrix, over a calibration text
carried.py     blocks of a GGUF taken over unchanged
join.py        two functions, one set of weights
normalise.py   same input, same bytes
golden.py      logits to hold a prediction to
program.py     a package read for evaluation; blobs.py: its weight file
mil.py         MLModel's interface in numpy; mil_ops.py: its operations
runner.py      the host's half of a prediction: masks, chunks, caches
verify.py      `edge convert verify`
tools.py       coremltools, imported quietly
"""
