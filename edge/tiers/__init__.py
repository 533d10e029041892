"""Tiers: a small model answers, and a larger one takes what the router sends on. See docs/tiers.md.

base.py        the contract of a tier: events of an answer in, and how it ended
router.py      which questions are sent on: by length, rule, entropy of the first answer, agreement of two
escalation.py  the next tier of a model: router, consent, what would be sent; holding back the first answer
local.py       a larger model on this device
remote.py      a server with OpenAI's protocol: time-outs, retries, streaming, cancellation
sse.py         server-sent events, read within limits and without trust
address.py     openai:URL, and the key for it
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["Escalation", "LocalTier", "Outgoing", "RemoteTier", "Router", "Tier"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.tiers.base": ("Outgoing", "Tier"),
        "edge.tiers.escalation": ("Escalation",),
        "edge.tiers.local": ("LocalTier",),
        "edge.tiers.remote": ("RemoteTier",),
        "edge.tiers.router": ("Router",),
    },
)
