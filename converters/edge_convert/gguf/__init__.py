"""GGUF: tensors, config and tokenizer written by us, quantised and calibrated by llama.cpp in a child process."""
