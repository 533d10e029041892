"""`edge kv forget --imported`: delete all that came with a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.kv.open import open_block_store


def test_what_came_with_a_bundle_is_deleted_also_where_a_fork_uses_it(call: Callable[..., Any]) -> None:
    settings = load_settings({"kv.min_free_gb": 0})
    settings.paths.conversations_file.parent.mkdir(parents=True, exist_ok=True)
    with ConversationStore(settings.paths.conversations_file) as conversations:
        own = conversations.create(title="mine")
        imported = conversations.import_json(conversations.export_json(own.id))
        space = imported.cache_namespace
    with open_block_store(settings) as store:
        for number, (owner, namespace) in enumerate([(own.id, ""), (imported.id, space), ("fork", space)]):
            key = store.put(None, [number], b"x", fingerprint=b"m" * 32, namespace=namespace, start=0, owner=owner)
            assert key is not None
            store.pin(key)
    refused = call("kv", "forget", "--imported", own.id)
    assert refused.code == 2 and "There is no imported conversation" in refused.err
    assert call("kv", "forget", "--imported", "--all").code == 2
    done = call("kv", "forget", "--imported", imported.id)
    assert done.code == 0 and "2 blocks deleted" in done.err + done.out
    with open_block_store(settings) as store:
        assert [info.owners for info in store.ls()] == [(own.id,)]
