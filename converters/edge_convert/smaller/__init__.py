"""A smaller model first: layers, neurons and tokens dropped, the rest distilled, adapters merged. Needs the extra [distill].

steps.py          all of it as steps of a conversion
recipe.py         how to make a model smaller, from a TOML file or options
sources.py        finds and reads a recipe's texts on this machine
prompts.py        questions that the teacher answers where nobody brings a text
writing.py        the teacher writes answers
corpus.py         texts as windows of tokens, some of them held out
teacher.py        the teacher's last hidden states, stored on disk
layers.py         choices of layers that a model can have
choose_layers.py  chooses the layers that stay
records.py        values that steps write as JSON
vocabulary.py     fewer tokens: which stay, and the tokenizer that spells with them; vocabulary_steps.py, as a step
ffn.py            narrower feed-forward layers, fitted to the whole ones
repair.py         fits what is left to the teacher by least squares
loss.py           forward KL over a large vocabulary, in pieces, with its gradient
distill.py        training that survives Ctrl-C, kill and power cuts
lora.py           merges a LoRA adapter into its model; lora_targets.py, the modules that one changes
models.py         checkpoints as torch models: opened, cut, saved
"""
