"""What a prompt is made of besides its messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from edge.messages import Tool

__all__ = ["NO_OPTIONS", "PromptOptions", "ToolFormat"]

ToolFormat = Literal["template", "prompt"]
"""How a model is told of tools: by its chat template, or in the system prompt where the template has no place for them."""


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What a prompt is made of besides its messages.

    Attributes:
        tools: that the model may call.
        tool_format: how it is told of them.
        tool_choice: "required" makes it call one of them, a name that one; "auto" leaves it to the model.
        think: whether it should think before it answers, where its template can say so; None leaves it to the template.
    """

    tools: tuple[Tool, ...] = ()
    tool_format: ToolFormat = "template"
    tool_choice: str = "auto"
    think: bool | None = None

    def variables(self) -> dict[str, Any]:
        """Return what the chat template gets."""
        variables: dict[str, Any] = {"tools": [tool.schema for tool in self.tools] or None}
        if self.tools and self.tool_format == "prompt":
            variables["tools_in_prompt"] = True
        if self.think is not None:
            variables |= {"enable_thinking": self.think, "thinking": self.think}
        return variables


NO_OPTIONS = PromptOptions()
"""Messages alone."""
