"""Conversations: trees of messages in SQLite; nothing that was reported as saved is lost.

store.py        `ConversationStore`
reply_saver.py  saves a reply while it is generated
claims.py       one process answers a conversation at a time
db.py           the SQLite file: schema, and marks of the processes that write there
tree.py         rows and values: nodes, attachments, search hits
files.py        JSON; markdown.py, Markdown
imports.py      files of conversations: which program wrote them
chatgpt.py      the export of ChatGPT; llm_log.py, the log of llm; foreign.py, what both share
merge.py        adds imported conversations, each once
search.py       full-text search
check.py        problems of a file, for `edge doctor`
rescue.py       `python -m edge.conversation.rescue`: restore what a damaged file still holds
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Attachment, ConversationInfo, Node, SearchHit, Status

__all__ = ["Attachment", "ConversationInfo", "ConversationStore", "Node", "SearchHit", "Status"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.conversation.store": ("ConversationStore",),
        "edge.conversation.tree": ("Attachment", "ConversationInfo", "Node", "SearchHit", "Status"),
    },
)
