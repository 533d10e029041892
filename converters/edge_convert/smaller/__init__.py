"""A smaller model first: layers dropped, what is left distilled from the whole, adapters merged. Needs the extra [distill].

recipe.py    what is wanted, as a TOML file or as options
prompts.py   questions that the teacher answers where nobody brings a text
sources.py   where a recipe's texts are on this machine
corpus.py    texts as windows of tokens, some of them held out
writing.py   the teacher writes answers
teacher.py   the teacher's last hidden states, kept on the disk
layers.py    which layers stay
repair.py    what is left, fitted to the teacher by least squares
loss.py      forward KL over a large vocabulary, in pieces, with its gradient
distill.py   training that survives Ctrl-C, kill and power cuts
lora.py      a LoRA adapter merged into its model
models.py    checkpoints opened, cut and saved
steps.py     all of it as steps of a conversion
"""
