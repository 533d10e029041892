"""The functions behind the commands of `edge_chat/table.py`.

writing.py        the composer
conversations.py  conversations
messages.py       single messages: the selected one, or the last one that fits; documents.py, the passages below an answer
roles.py          roles: system prompts by name
tools.py          tools and thoughts
model.py          the model, and how it answers; adapters.py, its LoRA adapters; tiers.py, a larger model or a server for it
voice.py          speech
view.py           the view, and the app itself
"""

from __future__ import annotations

from edge_chat.actions import adapters, conversations, documents, messages, model, roles, tiers, tools, view, voice, writing

__all__ = ["COMPLETERS", "RUNNERS"]

RUNNERS = {
    **writing.RUNNERS,
    **conversations.RUNNERS,
    **messages.RUNNERS,
    **model.RUNNERS,
    **adapters.RUNNERS,
    **tiers.RUNNERS,
    **documents.RUNNERS,
    **roles.RUNNERS,
    **tools.RUNNERS,
    **view.RUNNERS,
    **voice.RUNNERS,
}
"""Command name -> the function that runs it, given the screen and the argument."""

COMPLETERS = {
    **writing.COMPLETERS,
    **conversations.COMPLETERS,
    **messages.COMPLETERS,
    **model.COMPLETERS,
    **adapters.COMPLETERS,
    **tiers.COMPLETERS,
    **documents.COMPLETERS,
    **roles.COMPLETERS,
    **tools.COMPLETERS,
    **view.COMPLETERS,
    **voice.COMPLETERS,
}
"""Command name -> the function that proposes arguments, given the screen and the argument as typed so far."""
