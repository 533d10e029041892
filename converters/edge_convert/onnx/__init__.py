"""ONNX: the model builder of onnxruntime-genai in a child process, mended where it errs; int4 blocks of a GGUF carried over."""
