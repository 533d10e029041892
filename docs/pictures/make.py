"""Takes the picture of the chat for the README: the real app and the real model, asked real questions, drawn as SVG.

python docs/pictures/make.py [--model NAME_OR_PATH] [--seed N] [--output docs/pictures/chat.svg]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

QUESTIONS = (
    "What is the capital of France?",
    "Write a short Python function that reverses a string, and explain it.",
)
EARLIER = ("Names for a sailing boat", "Explain recursion to a child", "A packing list for the mountains")
SIZE = (120, 36)


async def take(model: str, seed: int, data_dir: Path) -> str:
    """Start the app, ask, and draw what is on the screen."""
    from edge.config import load_settings
    from edge.conversation import ConversationStore
    from edge.types import Message
    from edge_chat.app import ChatApp

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.chat_app import say, settle

    flags = {"model": model, "paths.data_dir": data_dir, "sampling.seed": seed, "sampling.max_tokens": 220}
    settings = load_settings({**flags, "chat.theme": "dark"})
    with ConversationStore(settings.paths.conversations_file) as store:
        for title in EARLIER:
            store.append(store.create(title=title).id, Message("user", title), parent=None)
    app = ChatApp(settings)
    app.is_still = True
    async with app.run_test(size=SIZE) as pilot:
        await settle(pilot)
        for question in QUESTIONS:
            await say(pilot, question)
        await pilot.pause(0.2)
        return app.export_screenshot(title="edge chat", simplify=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL") or "smollm2-135m")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("chat.svg"))
    options = parser.parse_args()
    os.environ.pop("EDGE_TEST_MODEL", None)
    with tempfile.TemporaryDirectory() as folder:
        picture = asyncio.run(take(options.model, options.seed, Path(folder)))
    options.output.write_text(picture)
    sys.stdout.write(f"{options.output} is drawn.\n")


if __name__ == "__main__":
    main()
