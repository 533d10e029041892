"""From a device, a model and a request to a plan, with a receipt in which every choice has its reason.

make.py          `make_plan`
receipt.py       the request, and the plan that comes out
checks.py        requests that cannot be met, whatever memory there is
placement.py     the engine for a model, and the accelerators to try
fitting.py       context, KV type, batch and layers that fit into memory
shortage.py      why nothing fits, and the nearest plan that would
memory.py        memory that a model takes
verdict.py       whether a model would fit, from its size alone
choosing.py      the best of a model's formats
speed.py         how fast an engine answers, and how far it may be from another
tuning.py        results of `edge tune`, stored per device, build and model shape
apply_tuning.py  applies them to the plan
draft.py         a model together with a smaller one that drafts for it
prefill.py       a model on two engines, one of which prefills
two.py           two plans that fit beside each other
adapters.py      a model together with LoRA adapters
advice.py        advice on making this device faster
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
