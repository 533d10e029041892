"""edge_convert: one checkpoint, three int4 formats, and one card on the quality of each.

The commands `edge convert` and `edge eval` are built on this package. It needs the extra: pip install 'edge-assistant[convert]'

plan.py           from a source and a request to a plan
facts.py          the request, and what is known of the model before a step has run
targets.py        the formats that a checkpoint can become, a row each
architectures.py  known model architectures, and the formats of each
inputs.py         finds the source of a conversion
model_config.py   config.json as typed values, checked once for all formats
rope.py           the rotary embedding in it
shapes.py         tensors that a model must have
checkpoint.py     a checkpoint folder, opened and checked
tokenizer_files.py  its tokenizer, checked and loaded
pipeline.py       runs a plan so that a second run resumes
full_disk.py      errors of a full disk
step_process.py   runs heavy steps in processes of their own
estimates.py      memory that each step takes
peak.py           memory that a conversion took
manifest.py       manifest.json: source, options and tools of a result
choose.py         chooses the best of several results for this device
torch_models.py   checkpoints as torch models
torch_device.py   the device that torch computes on
strings.py        strings that two tokenizers are compared on
gguf/, onnx/, coreml/, encoder/, smaller/, frontier/, evaluate/
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["Checkpoint", "Manifest", "open_checkpoint"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge_convert.checkpoint": ("Checkpoint", "open_checkpoint"),
        "edge_convert.manifest": ("Manifest",),
    },
)
