"""Recipes for a smaller model: TOML files in models/recipes/ or anywhere, or options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edge.errors import ConfigError, UsageError
from edge.files import MAX_JSON_BYTES, expand_user, open_file, parse_toml, shipped, toml_text
from edge.units import reason

__all__ = [
    "METHOD",
    "MOST_MINUTES",
    "Recipe",
    "Recovery",
    "Source",
    "Text",
    "Training",
    "check_recipe",
    "find_recipe",
    "list_recipes",
    "with_texts",
]

BETAS = (0.7, 0.95)
METHOD = f"forward KL, AdamW with betas {BETAS[0]} and {BETAS[1]}, linear learning-rate decay"
"""The part of a training that no recipe sets: it decides the weights, too."""

RECOVERY_LR = 0.005
"""Highest learning rate of quantised weights, in steps of their grid."""

MOST_MINUTES = 60 * 24 * 366
"""Of a training: a year, which also refuses an infinity."""

CHOICE_TOKENS, DIVERGENCE_TOKENS = 8192, 1024
"""Tokens that layers are chosen on, by influence and by divergence."""

ANSWERS_AT_ONCE, ROWS_AT_ONCE = 128, 256
"""Answers that the teacher writes in a batch; rows of logits that exist at a time."""

_READ_IN_A_MINUTE, _READ_BY = 55_000, 135e6  # tokens; half of a teacher of that many weights, on two cores
_RECOVERY_READS = 8
_FEWEST_TOKENS, _MOST_ANSWERS = 50_000, 3_500  # there are prompts for a few more
_ANSWER_TOKENS, _ROOM_FOR_PROMPT = 200, 56  # the prompt with the template's own text


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file with texts.

    Attributes:
        file: a path, relative to the recipe's folder or the package's.
        package: an installed Python package with the file; nothing of it is run.
        install: how to install the package, for people.
        field: of each line of a JSON lines file; "" is a text file.
        licence: of the text.
        sha256: of the file; "" is not checked.
    """

    file: str
    package: str = ""
    install: str = ""
    field: str = ""
    licence: str = ""
    sha256: str = ""

    @property
    def origin(self) -> str:
        """Origin of the text, without a path of this machine."""
        return f"{self.package}/{self.file}" if self.package else Path(self.file).name


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One text of a training.

    Attributes:
        name: for people.
        tokens: to train on; 0 only measures on this text.
        held_out_tokens: to measure on, never trained on.
        source: the text; None lets the teacher write it.
        prompts: that the teacher answers; None takes the built-in ones.
        answer_tokens: at most, of an answer.
        temperature: of the teacher's sampling.
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
        """True if the teacher writes it."""
        return self.source is None


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the training of a student.

    Attributes:
        minutes: of training; 0 if `steps` are given.
        steps: of training, the same on every machine; 0 if `minutes` are given.
        window: tokens of a window.
        batch: windows per step.
        lr: highest learning rate.
        warmup: share of the training in which the rate rises.
        weight_decay: of the matrices.
        seed: of the order of windows and of the teacher's sampling.
        save_s: seconds between two saved states.
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


class Recovery(Training, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the training of quantised weights; the learning rate is in steps of their grid."""

    lr: float = RECOVERY_LR
    warmup: float = 0.1


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe that makes a model smaller, recovers what its quantisation costs, or both.

    Attributes:
        title: for people.
        keep_layers: number of layers that stay; 0 keeps all.
        keep_ffn: feed-forward neurons that stay in each layer (`edge_convert.smaller.ffn`); 0 keeps all.
        keep_vocab: tokens that stay in the vocabulary (`edge_convert.smaller.vocabulary`); 0 keeps all.
        begin: folder of a point of a frontier (`edge_convert.frontier`), whose weights, tokens and texts the training goes on
            with; "" begins with the teacher's.
        layers: how they are chosen (`edge_convert.smaller.layers`): "divergence", "influence", or their numbers.
        repair_tokens: to fit the rest to the teacher before training; 0 leaves that out. After a minute or two of training it
            makes no difference.
        texts: to train and measure on; () is filled in by `with_texts`.
        training: how.
        recovery: how quantised weights are trained; None leaves that out.
    """

    title: str = ""
    keep_layers: int = 0
    keep_ffn: int = 0
    keep_vocab: int = 0
    begin: str = ""
    layers: Literal["influence", "divergence"] | tuple[int, ...] = "divergence"
    repair_tokens: int = 0
    texts: tuple[Text, ...] = ()
    training: Training = Training()
    recovery: Recovery | None = None

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings that are wanted."""
        return (*((self.training,) if self.is_trained else ()), *((self.recovery,) if self.recovery else ()))

    @property
    def is_smaller(self) -> bool:
        """Whether something is left out."""
        return bool(self.keep_layers or self.keep_ffn or self.keep_vocab)

    @property
    def label(self) -> str:
        """What stays, for names: "26-layers-ffn-1280-vocab-16384"."""
        kept = {f"{self.keep_layers}-layers": self.keep_layers, f"ffn-{self.keep_ffn}": self.keep_ffn}
        kept[f"vocab-{self.keep_vocab}"] = self.keep_vocab
        return "-".join(name for name, number in kept.items() if number)

    @property
    def is_trained(self) -> bool:
        """False if only tokens leave, which needs no training."""
        return bool(self.training.minutes or self.training.steps)


def with_texts(recipe: Recipe, n_params: int) -> Recipe:
    """Fill in the texts of a recipe without any: answers of the teacher to the built-in prompts.

    They last for one pass of the training, since repeated text teaches little; slower machines would need fewer.

    Args:
        recipe: from `check_recipe`.
        n_params: of the teacher.
    """
    if recipe.texts or not recipe.trainings:
        return recipe
    window = min(training.window for training in recipe.trainings)
    wanted = max(_wanted_tokens(training, n_params) for training in recipe.trainings)
    text = Text(
        name="answers",
        tokens=min(max(wanted, _FEWEST_TOKENS), _MOST_ANSWERS * window),
        held_out_tokens=4096,
        answer_tokens=max(8, min(_ANSWER_TOKENS, window - _ROOM_FOR_PROMPT)),
    )
    return msgspec.structs.replace(recipe, texts=(text,))


def _wanted_tokens(training: Training, n_params: int) -> int:
    """Return the tokens of text for a training. Recovery moves weights little, so it reads its text several times."""
    share = 1 / _RECOVERY_READS if isinstance(training, Recovery) else 1.0
    readable = training.minutes * _READ_IN_A_MINUTE * min(1.0, _READ_BY / n_params)
    wanted = training.steps * training.batch * training.window if training.steps else readable
    return int(wanted * share)


def list_recipes() -> dict[str, Path]:
    """Return the recipes that ship with edge, by name."""
    folder = shipped("recipes")
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}


def find_recipe(name: str) -> Recipe:
    """Read a recipe by the name of one that ships with edge, or the path of a TOML file.

    Raises:
        UsageError: it does not exist, is malformed, has an unknown key or a value out of range.
    """
    known = list_recipes()
    path = known.get(name) or expand_user(name)
    try:
        with open_file(path) as file:  # never waits for a FIFO
            data = file.read(MAX_JSON_BYTES)
        recipe = msgspec.convert(parse_toml(path, toml_text(path, data)), Recipe)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        listed = f" Those that ship with edge: {', '.join(known)}." if known else ""
        raise UsageError(f"There is no recipe {name}.", f"Give the path of a TOML file.{listed}") from error
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"The recipe {name} cannot be used: {reason(error)}.", "docs/convert.md describes recipes.") from error
    return check_recipe(msgspec.structs.replace(recipe, texts=tuple(_rooted(text, path.parent) for text in recipe.texts)))


def check_recipe(recipe: Recipe, *, is_search: bool = False) -> Recipe:
    """Refuse a recipe with a value out of range or without a text to train on.

    Args:
        recipe: to be checked.
        is_search: whether what stays is to be found out, and need not be said.

    Raises:
        UsageError: it is refused.
    """
    if not recipe.is_smaller and recipe.recovery is None and not is_search:
        raise UsageError("A recipe says what stays: keep_layers, keep_ffn or keep_vocab.", "Give one of them: --keep-layers 24")
    lengths = [(training.minutes > 0) ^ (training.steps > 0) for training in recipe.trainings]
    if not all(lengths) or ((recipe.keep_layers or recipe.keep_ffn) and not recipe.is_trained):
        raise UsageError(
            "A recipe says either how many minutes or how many steps it trains.", "Give one of them: --distill-minutes 30"
        )
    for number, parts in ((recipe.keep_layers, "layers"), (recipe.keep_ffn, "neurons"), (recipe.keep_vocab, "tokens")):
        if number < 0:
            raise UsageError(f"A model cannot keep {number} {parts}.", "Keep at least one.")
    if len({training.window for training in recipe.trainings}) > 1:
        raise UsageError("Both trainings of a recipe read the same windows.", "Give them the same window.")
    names = [text.name for text in recipe.texts]
    if recipe.texts and not any(text.tokens for text in recipe.texts):
        raise UsageError("The recipe has no text to train on.", "Give it one: [[texts]] in the recipe, or --distill-text FILE")
    if len(set(names)) < len(names) or not all(name.replace("-", "").replace("_", "").isalnum() for name in names):
        raise UsageError("The texts of a recipe have names of their own, of letters, digits and dashes.", "Rename them.")
    in_range = {
        "minutes": all(training.minutes < MOST_MINUTES for training in recipe.trainings),
        "window": all(16 <= training.window <= 4096 for training in recipe.trainings),
        "batch": all(training.batch >= 1 for training in recipe.trainings),
        "lr": all(0 < training.lr < 1 for training in recipe.trainings),
        "warmup": all(0 <= training.warmup < 1 for training in recipe.trainings),
        "weight_decay": all(0 <= training.weight_decay < 1 for training in recipe.trainings),
        "save_s": all(training.save_s >= 0 for training in recipe.trainings),
        "repair_tokens": recipe.repair_tokens >= 0,
        "tokens": all(text.tokens >= 0 and text.held_out_tokens >= 0 for text in recipe.texts),
        "answer_tokens": all(
            8 <= text.answer_tokens < training.window
            for text in recipe.texts
            for training in recipe.trainings
            if text.is_written
        ),
        "temperature": all(0 < text.temperature <= 2 for text in recipe.texts),
    }
    wrong = [name for name, is_good in in_range.items() if not is_good]
    if wrong:
        raise UsageError(f"The recipe's {' and '.join(wrong)} cannot have that value.", "docs/convert.md describes recipes.")
    return recipe


def _rooted(text: Text, folder: Path) -> Text:
    """Resolve the paths of a text against the recipe's folder."""

    def rooted(source: Source | None) -> Source | None:
        if source is None or source.package:
            return source
        return msgspec.structs.replace(source, file=str(folder / expand_user(source.file)))

    return msgspec.structs.replace(text, source=rooted(text.source), prompts=rooted(text.prompts))
