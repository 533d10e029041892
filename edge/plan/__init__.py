"""From a device, a model and a request to a placement receipt in which every choice has its reason.

make.py          `make_plan`
receipt.py       the request, and the plan that comes out
placement.py     which engine runs a model, on which accelerator
fitting.py       context, KV type, batch and layers that fit into memory
memory.py        how much memory a model takes
choosing.py      which of a model's formats to run
tuning.py        what `edge tune` measured, stored per device, build and model shape
apply_tuning.py  applies `edge tune` results to the plan
advice.py        what would make this device faster
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.names import Accelerator
    from edge.plan.make import make_plan
    from edge.plan.receipt import Choice, MemoryEstimate, Plan, PlanRequest

__all__ = ["Accelerator", "Choice", "MemoryEstimate", "Plan", "PlanRequest", "make_plan"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.names": ("Accelerator",),
        "edge.plan.make": ("make_plan",),
        "edge.plan.receipt": ("Choice", "MemoryEstimate", "Plan", "PlanRequest"),
    },
)
