"""Engines that run a model. `open_backend(plan)` is the only way in; the SDK of each is imported only when it is opened."""

from edge.backends.base import Backend, Capabilities, ModelInfo, Sampler, open_backend

__all__ = ["Backend", "Capabilities", "ModelInfo", "Sampler", "open_backend"]
