"""A recipe: how a model is made smaller. A TOML file in models/recipes/ or anywhere, or options of the command line."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.errors import UsageError
from edge.files import shipped

__all__ = ["Recipe", "Source", "Text", "Training", "check_recipe", "find_recipe", "list_recipes", "with_texts"]

_READ_IN_A_MINUTE, _READ_BY = 55_000, 135e6  # tokens; half of a teacher of that many weights, on two cores
_FEWEST_TOKENS, _MOST_ANSWERS = 50_000, 3_500  # there are prompts for a few more
_ANSWER_TOKENS, _ROOM_FOR_PROMPT = 200, 56  # the prompt with the template's own text


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file with texts.

    Attributes:
        file: a path; relative to the recipe's folder, or to the package's.
        package: an installed Python package that brings the file; nothing of it is run.
        install: how the package gets here, for people.
        field: of each line of a JSON lines file; a text file where it is "".
        licence: of the text.
        sha256: of the file; not checked where it is "".
    """

    file: str
    package: str = ""
    install: str = ""
    field: str = ""
    licence: str = ""
    sha256: str = ""

    @property
    def origin(self) -> str:
        """Where the text comes from, without a path of this machine."""
        return f"{self.package}/{self.file}" if self.package else Path(self.file).name


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ingredient of what is trained on.

    Attributes:
        name: for people.
        tokens: to train on; 0 makes it a text that is only measured.
        held_out_tokens: never trained on; the model is measured on them.
        source: the text; None lets the teacher write.
        prompts: what the teacher answers, where it writes; None takes those that come with edge.
        answer_tokens: at most so many in an answer.
        temperature: of the teacher's writing.
    """

    name: str
    tokens: int
    held_out_tokens: int = 0
    source: Source | None = None
    prompts: Source | None = None
    answer_tokens: int = 160
    temperature: float = 0.8

    @property
    def is_written(self) -> bool:
        """Whether the teacher writes it."""
        return self.source is None


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the student learns.

    Attributes:
        minutes: of training; 0 leaves it to `steps`.
        steps: of training, the same on every machine; 0 leaves it to `minutes`.
        window: tokens read in one go.
        batch: windows in a step.
        lr: highest learning rate.
        warmup: share of the training in which the rate rises.
        weight_decay: of the matrices.
        seed: of the order of windows and of the teacher's writing.
        save_s: seconds between two states on the disk.
    """

    minutes: float = 0.0
    steps: int = 0
    window: int = 256
    batch: int = 4
    lr: float = 8e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    seed: int = 1
    save_s: float = 60.0


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is made smaller.

    Attributes:
        title: for people.
        keep_layers: how many stay.
        layers: how they are chosen (`edge_convert.smaller.layers`): "divergence", "influence", or the numbers themselves.
        repair_tokens: read to fit what is left to the teacher before training; 0 leaves that out. Worth it where training is
            short: after a minute or two it makes no difference.
        texts: what is trained on and measured; see `with_texts` where there are none.
        training: how.
    """

    title: str = ""
    keep_layers: int
    layers: Literal["influence", "divergence"] | tuple[int, ...] = "divergence"
    repair_tokens: int = 0
    texts: tuple[Text, ...] = ()
    training: Training = Training()


def with_texts(recipe: Recipe, n_params: int) -> Recipe:
    """The recipe with something to train on: where it names nothing, answers of the teacher to prompts that come with edge.

    As many as the training comes to read once: what is read again teaches little. On slower machines fewer would do.

    Args:
        recipe: from `check_recipe`.
        n_params: of the teacher.
    """
    if recipe.texts:
        return recipe
    training = recipe.training
    readable = training.minutes * _READ_IN_A_MINUTE * min(1.0, _READ_BY / n_params)
    wanted = training.steps * training.batch * training.window if training.steps else int(readable)
    text = Text(
        name="answers",
        tokens=min(max(wanted, _FEWEST_TOKENS), _MOST_ANSWERS * training.window),
        held_out_tokens=4096,
        answer_tokens=max(8, min(_ANSWER_TOKENS, training.window - _ROOM_FOR_PROMPT)),
    )
    return msgspec.structs.replace(recipe, texts=(text,))


def list_recipes() -> dict[str, Path]:
    """The recipes that come with edge, by name."""
    folder = shipped("recipes")
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}


def find_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: of one that comes with edge, or the path of a TOML file.

    Raises:
        UsageError: there is none of that name, or it is malformed, has an unknown key or a value out of range.
    """
    # tomllib came with Python 3.11; tomli is the same library for 3.10.
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    known = list_recipes()
    path = known.get(name) or Path(name).expanduser()
    try:
        content = toml.loads(path.read_text(encoding="utf-8"))
        recipe = msgspec.convert(content, Recipe)
    except FileNotFoundError as error:
        listed = f" Those that come with edge: {', '.join(known)}." if known else ""
        raise UsageError(f"There is no recipe {name}.", f"Give the path of a TOML file.{listed}") from error
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"The recipe {name} cannot be used: {error}.", "docs/convert.md describes recipes.") from error
    return check_recipe(msgspec.structs.replace(recipe, texts=tuple(_rooted(text, path.parent) for text in recipe.texts)))


def check_recipe(recipe: Recipe) -> Recipe:
    """Refuse what cannot be meant.

    Raises:
        UsageError: a value is out of range, or there is nothing to train on.
    """
    training = recipe.training
    if not (training.minutes > 0) ^ (training.steps > 0):
        raise UsageError(
            "A recipe says either how many minutes or how many steps it trains.", "Give one of them: --distill-minutes 30"
        )
    if recipe.keep_layers < 1:
        raise UsageError(f"A model cannot keep {recipe.keep_layers} layers.", "Keep at least one.")
    names = [text.name for text in recipe.texts]
    if recipe.texts and not any(text.tokens for text in recipe.texts):
        raise UsageError("The recipe has no text to train on.", "Give it one: [[texts]] in the recipe, or --distill-text FILE")
    if len(set(names)) < len(names) or not all(name.replace("-", "").replace("_", "").isalnum() for name in names):
        raise UsageError("The texts of a recipe have names of their own, of letters, digits and dashes.", "Rename them.")
    in_range = {
        "window": 16 <= training.window <= 4096,
        "batch": training.batch >= 1,
        "lr": 0 < training.lr < 1,
        "warmup": 0 <= training.warmup < 1,
        "weight_decay": 0 <= training.weight_decay < 1,
        "save_s": training.save_s >= 0,
        "repair_tokens": recipe.repair_tokens >= 0,
        "tokens": all(text.tokens >= 0 and text.held_out_tokens >= 0 for text in recipe.texts),
        "answer_tokens": all(8 <= text.answer_tokens < training.window for text in recipe.texts if text.is_written),
        "temperature": all(0 < text.temperature <= 2 for text in recipe.texts),
    }
    wrong = [name for name, is_good in in_range.items() if not is_good]
    if wrong:
        raise UsageError(f"The recipe's {' and '.join(wrong)} cannot have that value.", "docs/convert.md describes recipes.")
    return recipe


def _rooted(text: Text, folder: Path) -> Text:
    """Paths in a recipe count from its own folder."""

    def rooted(source: Source | None) -> Source | None:
        if source is None or source.package:
            return source
        return msgspec.structs.replace(source, file=str(folder / Path(source.file).expanduser()))

    return msgspec.structs.replace(text, source=rooted(text.source), prompts=rooted(text.prompts))
