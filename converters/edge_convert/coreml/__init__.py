"""Core ML packages: made from a checkpoint on any system, run on a Mac, evaluated anywhere.

decoder.py     what the exporter has to know of a model          model.py      the decoder as a MIL program
weights.py     how a matrix is stored                            quantise.py   which matrix is stored how
grids.py       the numbers of quantisation                       calibrate.py  what each matrix is fed with
carried.py     blocks of a GGUF taken over                       export.py     checkpoint -> package
join.py        two functions, one set of weights                 normalise.py  same input, same bytes
program.py     a package read back (blobs.py: its weight file)   mil.py        MLModel's interface in numpy (mil_ops.py)
info.py        what a package says about itself                  golden.py     logits to hold a prediction to
runner.py      the host's half: masks, chunks, caches            verify.py     `edge convert verify`
"""
