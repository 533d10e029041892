"""Built-in prompts that a teacher answers where a recipe has no text, combined from parts.

None of them is among the prompts that models are measured with (edge_convert/evaluate/texts/chat.json).
"""

from __future__ import annotations

import itertools
import random

__all__ = ["built_in_prompts"]

_SEED = 7
_ASK_ABOUT_THINGS = (
    "What is {}?",
    "Explain {} to a ten-year-old.",
    "Write a short paragraph about {}.",
    "Give me five facts about {}.",
    "Why does {} matter?",
    "What are common mistakes people make with {}?",
    "Write an encyclopedia article about {}.",
    "How has {} changed over the last hundred years?",
    "Compare {} with something similar, and name two differences.",
    "Write a quiz question about {} with its answer.",
    "Summarise what a beginner should know about {}.",
    "Write a poem of four lines about {}.",
    "Tell me an interesting story about {}.",
    "What would you ask an expert in {}?",
)
_THINGS = """
photosynthesis; the water cycle; gravity; volcanoes; earthquakes; the moon; comets; black holes; electricity; magnets;
batteries; steam engines; bicycles; bridges; sailing ships; aeroplanes; trains; the printing press; paper; glass; steel;
concrete; cotton; silk; salt; sugar; coffee; tea; chocolate; bread; cheese; rice; potatoes; olive oil; honey; bees; ants;
butterflies; owls; wolves; whales; sharks; octopuses; horses; cats; dogs; dinosaurs; fossils; rainforests; deserts; glaciers;
rivers; coral reefs; tides; weather forecasts; hurricanes; the seasons; the Roman Empire; ancient Egypt; ancient Greece; the
Vikings; the Silk Road; the Renaissance; the Industrial Revolution; the First World War; the space race; the Olympic Games;
democracy; constitutions; taxes; inflation; banks; insurance; trade; supply and demand; advertising; newspapers; libraries;
museums; schools; universities; hospitals; vaccines; antibiotics; blood pressure; sleep; exercise; vitamins; allergies; the
heart; the brain; memory; dreams; languages; grammar; alphabets; translation; poetry; theatre; opera; jazz; the violin; the
piano; painting; photography; cinema; chess; football; tennis; swimming; running; mountaineering; gardening; cooking; sewing;
carpentry; pottery; recycling; solar power; wind turbines; nuclear power; maps; compasses; calendars; clocks; money;
probability; statistics; geometry; algebra; prime numbers; the number zero; algorithms; databases; the internet; email;
passwords; encryption; operating systems; compilers; spreadsheets; robots; machine learning; video games; the telephone; radio;
satellites
"""
_DO_IN_PLACES = (
    "Plan a day in {}.",
    "What is {} known for?",
    "Describe the climate of {}.",
    "Write a postcard from {}.",
    "Tell me about the history of {}.",
    "What should a visitor to {} eat?",
)
_PLACES = """
London; Rome; Madrid; Berlin; Vienna; Prague; Lisbon; Athens; Oslo; Dublin; Istanbul; Cairo; Nairobi; Cape Town; Lagos; Mumbai;
Delhi; Bangkok; Hanoi; Beijing; Seoul; Tokyo; Sydney; Auckland; New York; Chicago; Toronto; Mexico City; Lima; Buenos Aires;
Iceland; Norway; Italy; Japan; Brazil; Canada; India; Kenya; Morocco; Peru
"""
_WRITE = (
    "Write an email to {} about {}.",
    "Write a short speech to {} about {}.",
    "Write a dialogue between you and {} about {}.",
    "Write a polite complaint to {} about {}.",
)
_PEOPLE = (
    "my boss; a teacher; my landlord; a customer; an old friend; the city council; my team; a doctor; my grandmother; a hotel"
)
_MATTERS = """
a delayed delivery; next week's meeting; a broken heater; a birthday party; the new rules; a job application; a lost bag; the
annual budget; a noisy street; holiday plans; a thank-you present; a change of address
"""
_STORIES = (
    "Write the beginning of a novel about {} in {}.",
    "Write a short story about {} in {}.",
    "Write a scene with dialogue: {} in {}.",
    "Write a diary entry of {} in {}.",
)
_HEROES = """
a young governess; two brothers who have not spoken for years; a retired sailor; a clever thief; a lonely robot; a village
doctor; a travelling musician; a widow with a secret; a nervous bridegroom; a talking fox; a tired detective; an honest
merchant; a girl who collects maps; a proud landowner; three sisters without a fortune
"""
_SETTINGS = """
an English country house; a small harbour; a snowed-in inn; a big city at night; a space station; an old library; a quiet
village; a desert town; a ship in a storm; a castle; a school; a market on a summer morning
"""
_CODE = (
    "Write a Python function that {}.",
    "Write a JavaScript function that {}.",
    "Explain how you would write a program that {}.",
    "Write a test for a function that {}.",
)
_TASKS = """
reverses a string; counts the vowels in a text; checks whether a word is a palindrome; sorts a list of names; removes
duplicates from a list; computes the factorial of a number; finds all prime numbers below n; converts Celsius to Fahrenheit;
reads a CSV file and sums a column; merges two sorted lists; finds the most common word in a text; validates an email address;
generates a random password; computes the average of a list; counts the days between two dates; searches a sorted list;
flattens a nested list; draws a triangle of stars; parses a URL; groups words by their first letter; writes a dictionary to a
JSON file; transposes a matrix; computes Fibonacci numbers
"""
_ADVICE = (
    "How do I {}?",
    "Give me step-by-step instructions to {}.",
    "What do I need to {}?",
    "Name three ways to {} and say which is best.",
    "What can go wrong when I {}?",
)
_AIMS = """
learn a new language; sleep better; save money; prepare for an interview; bake bread; start running; write a diary; clean a
keyboard; pack for a long flight; choose a laptop; keep houseplants alive; speak in public; make new friends; remember names;
cook for ten people; repair a flat tyre; paint a room; organise my desk; read more books; cut down on sugar; train a puppy;
take better photographs; move to another city; plan a wedding; learn the guitar; study for an exam; write a good summary; grow
tomatoes; build a bookshelf; set up a home network
"""

_FACTS = (
    (
        "What is the capital of {}?; Which language do people speak in {}?; On which continent is {}?; "
        "What is the currency of {}?",
        """
        Albania; Algeria; Angola; Armenia; Bangladesh; Belgium; Bolivia; Cambodia; Cameroon; Colombia; Croatia;
        Cyprus; Ecuador; Ethiopia; Fiji; Georgia; Ghana; Guatemala; Honduras; Israel; Jamaica; Jordan;
        Kazakhstan; Laos; Lebanon; Libya; Lithuania; Malaysia; Mali; Malta; Mozambique; Myanmar; Nepal;
        Nicaragua; Pakistan; Panama; Paraguay; Qatar; Rwanda; Senegal; Serbia; Singapore; Slovakia; Slovenia;
        Sri Lanka; Sudan; Syria; Tanzania; Tunisia; Uganda; Ukraine; Uruguay; Uzbekistan; Venezuela; Zambia
        """,
    ),
    (
        "Who wrote {}?; What is {} about?; When was {} written?",
        """
        Moby-Dick; Dracula; Jane Eyre; Wuthering Heights; Great Expectations; Les Misérables; The Odyssey; Emma; Ulysses;
        Robinson Crusoe; Gulliver's Travels; The Time Machine; Treasure Island; Macbeth; The Republic; Walden; Middlemarch
        """,
    ),
    (
        "Who was {}?; What is {} famous for?; In which century did {} live?",
        """
        Marie Curie; Isaac Newton; Galileo Galilei; Charles Darwin; Cleopatra; Julius Caesar; Mozart; Beethoven; Napoleon;
        Mahatma Gandhi; Nelson Mandela; Abraham Lincoln; Florence Nightingale; Aristotle; Plato; Michelangelo; Joan of Arc;
        Christopher Columbus; Marco Polo; Thomas Edison; Nikola Tesla; Louis Pasteur; Ada Lovelace; Alan Turing
        """,
    ),
    (
        "What colour is {}?; What is {} made of?; What do we use {} for?; Where do we find {}?",
        """
        a lemon; coal; a ruby; an emerald; milk; a flamingo; rust; chlorophyll; ivory; amber; a tomato; sand; granite; a cloud;
        leather; wool; rubber; a pencil; a candle; brass; chalk; a pearl; a coin; a tyre; cement
        """,
    ),
    (
        "What is {} used for?; Is {} a metal?",
        """
        helium; carbon; nitrogen; sodium; magnesium; aluminium; silicon; sulphur; chlorine; potassium; calcium; copper; zinc;
        tin; lead; mercury; neon; uranium; nickel; titanium
        """,
    ),
    (
        "What is the opposite of {!r}?; Give me a word that means the same as {!r}.; Use the word {!r} in a sentence.",
        """
        heavy; dry; loud; narrow; sweet; brave; full; deep; soft; clean; polite; ancient; difficult; generous;
        calm; cheap; wide; rough; tall; lazy
        """,
    ),
    (
        "How many legs does {} have?; What does {} eat?; What is the young of {} called?; Where does {} live?",
        """
        a horse; an ant; a duck; a crab; a frog; a lion; a bee; an elephant; a penguin; a kangaroo; a rabbit; a goat;
        a squirrel; a bat; an eagle; a tortoise; a camel; a dolphin; a snail; a bear
        """,
    ),
)


def built_in_prompts() -> list[str]:
    """Return all built-in prompts, in a fixed order that mixes the kinds."""
    made = [
        *_combine(_ASK_ABOUT_THINGS, _THINGS),
        *_combine(_DO_IN_PLACES, _PLACES),
        *_combine(_WRITE, _PEOPLE, _MATTERS),
        *_combine(_STORIES, _HEROES, _SETTINGS),
        *_combine(_CODE, _TASKS),
        *_combine(_ADVICE, _AIMS),
        *_sums(),
        *_facts(),
    ]
    random.Random(_SEED).shuffle(made)  # noqa: S311  # an order, no secret
    return made


def _combine(forms: tuple[str, ...], *parts: str) -> list[str]:
    lists = [[" ".join(part.split()) for part in text.split(";")] for text in parts]
    return [form.format(*chosen) for chosen in itertools.product(*lists) for form in forms]


def _facts() -> list[str]:
    """Return short questions, whose answers a small model forgets first."""
    forms = [(tuple(form.strip() for form in forms.split(";")), things) for forms, things in _FACTS]
    return [prompt for kinds, things in forms for prompt in _combine(kinds, things)]


def _sums() -> list[str]:
    chance = random.Random(_SEED)  # noqa: S311  # sums, no secrets
    pairs = [(chance.randint(2, 99), chance.randint(2, 99)) for _ in range(100)]
    return [f"What is {a} {sign} {b}?" for (a, b), sign in itertools.product(pairs[:60], "+-") if (a, b) != (17, 26)]
