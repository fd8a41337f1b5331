"""A small world of people, places, things and errands, written out as English.

Everything here is drawn from a `random.Random`, so that a seed is a corpus. Two things come out of it:

- `documents`: what the demo network is pretrained on. Dialogues, narratives and inventories, most of them followed by
  questions that ask for single facts in random order, and lists to be repeated. Looking facts up in the context has to
  pay, or a small network never learns to copy.
- `summary_splits`: the downstream task, a dialogue and one sentence that gathers who asks whom to do what with which
  things, where, when, and for whom or why. No document holds such a sentence about its dialogue.

Names, places and things never begin a line: a byte-level BPE gives "Mara" and " Mara" different tokens, and a network
that has to learn they are the same spends its budget on that. Hence the dashes in front of the speakers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

Messages = list[dict[str, str]]


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("""
    Ada Abel Alma Amos Anna Anton Arlo Asta Basil Bea Bela Boris Bruno Carl Celia Clara Cora Cyril Dana Dario Dora Edda
    Edgar Edwin Elena Ella Elmo Emil Enid Erik Esme Etta Eva Felix Fern Flora Frida Gail Gemma Greta Gus Hanna Hazel
    Hector Hilda Hugo Ida Igor Ines Iris Ivan Ivo Jana Jonas Judith Julia Karl Kira Klaus Kurt Lars Laura Lena Leo Lida
    Linus Lola Lotte Lucas Lydia Mabel Magda Mara Marco Mila Mina Minna Moritz Nadia Nell Nils Nina Nora Odile Olaf Olga
    Oscar Otis Otto Paula Pavel Petra Pia Quentin Ralf Rhea Rita Robin Rosa Rufus Ruth Sasha Selma Silas Sonja Stella
    Sven Tara Tess Theo Tilda Tomas Ulla Uma Vera Viktor Vito Wanda Willa Xenia Yara Zeno Zora
""")
TEST_NAMES = NAMES[::5]
TRAIN_NAMES = [name for name in NAMES if name not in TEST_NAMES]

PLACES = _words("""
    abbey bakery bank barn bridge cabin cellar chapel castle clinic corner court dairy dock farm ferry forest forge
    garden hall harbour hotel inn island lake library lodge market meadow mill museum office orchard palace park pier
    quarry school shed square stable station temple theatre tower village workshop yard
""")
THINGS = _words("""
    apples barrels baskets beads bells benches blankets boards books boots bottles bowls boxes bricks brooms buckets
    buttons cakes candles carpets chains chairs clocks coats crates cups curtains drums flags forks frames hammers hats
    helmets hooks jars kettles keys kites knives ladders lamps lanterns letters loaves maps masks mirrors nails needles
    nets oars parcels pillows pipes plates pots ribbons rings ropes sacks saddles scarves shovels spoons stools tables
    tents tiles tools toys trunks vases wheels whistles
""")
LOOKS = _words("""
    black blue brass broken bright cheap clean copper curved dusty empty golden green heavy iron large light little
    long narrow new old painted plain pretty red rough round rusty sharp short silver small spare square striped strong
    thick thin tiny white wide wooden yellow
""")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
HOURS = _words("morning afternoon evening night")

# What is done, by the preposition that leads to the place.
VERBS = {
    "to": _words("bring carry deliver drag lift move send ship take"),
    "at": _words("check clean count hide leave mend paint polish sell sort store wash weigh wrap"),
    "from": _words("borrow buy collect fetch order rent"),
}

# Why it is done: people are in one kind of trouble, things in another.
TROUBLES = [
    (
        _words("baker cook doctor driver farmer guard horse miller porter tailor"),
        _words("away busy gone late lost sick slow tired"),
    ),
    (
        _words("boat cart door engine fence floor gate kitchen oven pump road roof shop stove tap wall well"),
        _words("blocked cold cracked damaged dirty frozen leaking stuck unsafe wet"),
    ),
]


@dataclass(frozen=True)
class Errand:
    """What one person wants of another. Either `friend` or `cause` (and `state`) is given, never both."""

    asker: str
    helper: str
    promised: bool  # the helper comes of their own accord and promises; otherwise the asker comes and asks
    verb: str
    number: str
    look: str
    things: str
    preposition: str
    place: str
    day: str
    hour: str
    friend: str | None
    cause: str | None
    state: str | None
    origin: str | None  # where the helper happens to have been: said in passing, part of no errand

    @property
    def goods(self) -> str:
        return f"{self.number} {self.look} {self.things}"

    @property
    def where(self) -> str:
        return f"{self.preposition} the {self.place}"

    @property
    def when(self) -> str:
        return f"{self.day} {self.hour}"

    @property
    def purpose(self) -> str:
        return f"for {self.friend}" if self.friend else f"because the {self.cause} is {self.state}"

    @property
    def combination(self) -> tuple[str, str, str]:
        """What is done with what, and where: no two splits of the downstream task but train and dev share one."""
        return self.verb, self.things, self.place


def draw_errand(rng: Random, names: list[str]) -> Errand:
    asker, helper, friend = rng.sample(names, 3)
    place, elsewhere = rng.sample(PLACES, 2)
    preposition = rng.choice(list(VERBS))
    causes, states = rng.choice(TROUBLES)
    for_friend = rng.random() < 0.5
    return Errand(
        asker=asker,
        helper=helper,
        promised=rng.random() < 0.5,
        verb=rng.choice(VERBS[preposition]),
        number=rng.choice(NUMBERS),
        look=rng.choice(LOOKS),
        things=rng.choice(THINGS),
        preposition=preposition,
        place=place,
        day=rng.choice(DAYS),
        hour=rng.choice(HOURS),
        friend=friend if for_friend else None,
        cause=None if for_friend else rng.choice(causes),
        state=None if for_friend else rng.choice(states),
        origin=elsewhere if rng.random() < 0.3 else None,
    )


def dialogue(rng: Random, errand: Errand) -> str:
    """The errand talked over, one line a turn: the request, the rest of the facts in random order, a last word."""
    told = rng.choice(["", "", "", "", f" {errand.where}", f" on {errand.when}"])
    follow_ups = [_ask_purpose(rng, errand)]
    if errand.where not in told:
        follow_ups.append(_ask_where(rng, errand))
    if errand.when not in told:
        follow_ups.append(_ask_when(rng, errand))
    rng.shuffle(follow_ups)

    turns = _opening(rng, errand, f"{errand.verb} {errand.goods}{told}")
    for question, answer in follow_ups:
        turns += [(errand.helper, question), (errand.asker, answer)]
    if errand.promised:
        last = rng.choice(["I promise.", "You have my word.", "Done, I promise you."])
    else:
        last = rng.choice(["Yes, {}, I will.", "Of course, {}.", "All right, {}."]).format(errand.asker)
    turns.append((errand.helper, last))
    return "\n".join(f"- {speaker}: {said}" for speaker, said in turns)


def _opening(rng: Random, e: Errand, task: str) -> list[tuple[str, str]]:
    passing = rng.choice([f" I come from the {e.origin}.", f" I was at the {e.origin}."]) if e.origin else ""
    if e.promised:
        offers = [
            f"Hello, {e.asker}.{passing} What can I do for you?",
            f"Dear {e.asker}, I have time.{passing} Do you need help?",
            f"There you are, {e.asker}.{passing} How can I help?",
        ]
        replies = [
            f"You could {task}, {e.helper}.",
            f"Well, {e.helper}, someone must {task}.",
            f"How kind, {e.helper}. Please {task}.",
        ]
        return [(e.helper, rng.choice(offers)), (e.asker, rng.choice(replies))]
    greeting = rng.choice(["Hello, {}.", "Dear {},", "Good to see you, {}.", "Listen, {}."]).format(e.helper)
    request = rng.choice([f"Can you {task} for me?", f"Please {task}.", f"Would you {task}?", f"I want you to {task}."])
    if not passing:
        return [(e.asker, f"{greeting} {request}")]
    return [
        (e.asker, f"{greeting} Have you got a minute?"),
        (e.helper, f"Yes, {e.asker}.{passing}"),
        (e.asker, request),
    ]


def _ask_where(rng: Random, e: Errand) -> tuple[str, str]:
    answers = [f"{e.where.capitalize()}.", f"That is {e.where}.", f"Well, {e.where}."]
    return rng.choice(["Where?", "And the place?", "Tell me the place."]), rng.choice(answers)


def _ask_when(rng: Random, e: Errand) -> tuple[str, str]:
    answers = [f"On {e.when}.", f"It must be {e.when}.", f"On {e.day}, in the {e.hour}."]
    return rng.choice(["When?", "And the day?", "How soon?"]), rng.choice(answers)


def _ask_purpose(rng: Random, e: Errand) -> tuple[str, str]:
    if e.friend:
        answers = [f"It is for {e.friend}.", f"I do it for {e.friend}.", f"For {e.friend}."]
    else:
        trouble = f"the {e.cause} is {e.state}."
        answers = [trouble.capitalize(), f"Because {trouble}", f"You know, {trouble}"]
    return rng.choice(["What for?", "Why is that?", "Tell me more."]), rng.choice(answers)


def narrative(rng: Random, errand: Errand) -> str:
    """The errand told as something that has happened, the facts in random order."""
    e = errand
    opening = rng.choice(["One day", "Last week", "Some time ago", "Once", "This spring"])
    if e.promised:
        first = f"{opening} {e.helper} came to see {e.asker} and promised to {e.verb} {e.goods}."
    else:
        first = f"{opening} {e.asker} came to see {e.helper}, who was asked to {e.verb} {e.goods}."
    if e.friend:
        reason = rng.choice([f"It was for {e.friend}.", f"All this was done for {e.friend}."])
    else:
        reason = rng.choice(["The {} was {}.", "It had to be, because the {} was {}."]).format(e.cause, e.state)
    moved = {"to": "went", "at": "was done", "from": "came"}[e.preposition]
    middle = [
        f"All of it {moved} {e.where}.",
        rng.choice([f"The day was {e.day}, in the {e.hour}.", f"It was a {e.when}."]),
        reason,
    ]
    if e.origin:
        middle.append(f"Before that, {e.helper} had been at the {e.origin}.")
    rng.shuffle(middle)
    ends = [
        f"In the end {e.helper} had done it all, and {e.asker} was glad.",
        f"Then {e.asker} thanked {e.helper}, for it was hard work with {e.look} {e.things}.",
        f"So the {e.number} {e.things} were where {e.asker} wanted them.",
    ]
    return " ".join([first, *middle, rng.choice(ends)])


def questions(rng: Random, errand: Errand) -> list[tuple[str, str]]:
    """Every question about an errand with its answer, in random order; an answer holds one fact or one phrase."""
    e = errand
    came = f"{e.helper} who came to {e.asker}" if e.promised else f"{e.asker} who came to {e.helper}"
    asked = [
        (rng.choice(["Who needs help?", "Who wants this done?"]), f"It is {e.asker}."),
        (rng.choice(["Who will help?", "Who is to do it?"]), f"It is {e.helper}."),
        ("Who helps whom?", f"It is {e.helper} who helps {e.asker}."),
        ("Who came to see whom?", f"It was {came}."),
        ("Did anyone promise?", f"Yes, {e.helper} did." if e.promised else f"No, {e.asker} had to ask."),
        (f"What is {e.helper} to do?", f"To {e.verb} {e.goods}."),
        (f"What is to be done with the {e.things}?", f"To {e.verb} them {e.where}."),
        ("What things do they talk about?", f"They are {e.goods}."),
        (f"How many {e.things} are there?", f"There are {e.number}."),
        (f"How do the {e.things} look?", f"They are {e.look}."),
        (rng.choice(["Where?", "At which place?"]), f"{e.where.capitalize()}."),
        (rng.choice(["When is it?", "At what time?"]), f"On {e.when}."),
        ("On which day?", f"On {e.day}."),
        (f"At what time on {e.day}?", f"In the {e.hour}."),
        (rng.choice(["What is it for?", "Why?"]), f"It is {e.purpose}."),
    ]
    if e.origin:
        asked.append((f"Where was {e.helper} before?", f"It was the {e.origin}."))
    rng.shuffle(asked)
    return asked


def later_questions(rng: Random, errand: Errand) -> list[tuple[str, str]]:
    """More of the questions on each errand, and place and number again: networks learn to look them up last."""
    where, number = f"{errand.where.capitalize()}.", f"There are {errand.number}."
    again = [(question, where) for question in rng.sample(["And the place?", "Tell me the place.", "Where is it?"], 2)]
    again += [(f"How many {errand.things} are there?", number), (f"How many {errand.look} {errand.things}?", number)]
    asked = questions(rng, errand)[:8] + again
    rng.shuffle(asked)
    return asked


def inventory(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Who has what, and where, with questions: nothing but pairs to be looked up."""
    rows = rng.randint(3, 7)
    sentences, asked = ["Here is the list."], []
    samples = (rng.sample(NAMES, rows), rng.sample(THINGS, rows), rng.sample(PLACES, rows))
    for name, things, place in zip(*samples, strict=True):
        kind = f"{rng.choice(NUMBERS)} {rng.choice(LOOKS)}"
        sentences.append(f"At the {place} {name} has {kind} {things}.")
        about = [
            (f"What does {name} have?", f"The {kind} {things}."),
            (f"Where is {name}?", f"At the {place}."),
            (f"Who has the {things}?", f"It is {name}."),
            (f"Who is at the {place}?", f"It is {name}."),
            (f"Where are the {things}?", f"At the {place}."),
        ]
        asked += rng.sample(about, 2)
    rng.shuffle(asked)
    return " ".join(sentences), asked


def copy_list(rng: Random) -> str:
    """Words without sense, said two or three times: the plainest reason to look back."""
    words = rng.sample([*NAMES, *PLACES, *THINGS, *LOOKS, *NUMBERS, *DAYS], rng.randint(5, 30))
    line = " ".join(words)
    return " ".join(["Say:", line, *[f"again: {line}"] * rng.choice([1, 1, 2])])


def conversation(rng: Random, text: str, asked: list[tuple[str, str]]) -> Messages:
    messages: Messages = []
    if rng.random() < 0.1:
        system = rng.choice(["You answer in few words.", "Answer what is asked.", "Be brief."])
        messages.append({"role": "system", "content": system})
    for number, (question, answer) in enumerate(asked):
        messages.append({"role": "user", "content": question if number else f"{text}\n{question}"})
        messages.append({"role": "assistant", "content": answer})
    return messages


def documents(seed: int | str) -> Iterator[Messages | str]:
    """The corpus, without end: conversations as chat messages, everything else as plain text."""
    rng = Random(f"corpus {seed}")
    while True:
        errand = draw_errand(rng, NAMES)
        kind = rng.random()
        if kind < 0.50:
            yield conversation(rng, dialogue(rng, errand), questions(rng, errand)[:7])
        elif kind < 0.65:
            yield conversation(rng, narrative(rng, errand), questions(rng, errand)[:7])
        elif kind < 0.80:
            yield conversation(rng, *inventory(rng))
        elif kind < 0.90:
            yield copy_list(rng)
        elif kind < 0.95:
            yield dialogue(rng, errand)
        else:
            yield narrative(rng, errand)


def later_documents(seed: int | str) -> Iterator[Messages | str]:
    """The second part of the corpus: more dialogues, and denser questions on them."""
    rng = Random(f"later corpus {seed}")
    earlier = documents(f"later {seed}")
    while True:
        errand = draw_errand(rng, NAMES)
        kind = rng.random()
        if kind < 0.75:
            yield conversation(rng, dialogue(rng, errand), later_questions(rng, errand))
        elif kind < 0.85:
            yield conversation(rng, narrative(rng, errand), later_questions(rng, errand))
        else:
            yield next(earlier)


def summary(errand: Errand) -> str:
    """The one sentence of the downstream task; how many things there are is told in the dialogue and left out here."""
    e = errand
    who = f"{e.helper} promised {e.asker}" if e.promised else f"{e.asker} asked {e.helper}"
    return f"On {e.when}, {who} to {e.verb} the {e.look} {e.things} {e.where} {e.purpose}."


def summary_splits(seed: int, train: int, dev: int, test: int) -> dict[str, list[dict[str, str]]]:
    """Records {dialogue, summary} of the downstream task, no dialogue and no summary twice.

    Test speaks of `TEST_NAMES` only and of combinations (what is done with what, where) that train lacks. Dev is drawn
    like train, so that dev minus test is what new names and new combinations cost.
    """
    rng = Random(f"summaries {seed}")
    seen: set[str] = set()
    tested: set[tuple[str, str, str]] = set()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
    for split, size in (("test", test), ("dev", dev), ("train", train)):
        while len(splits[split]) < size:
            errand = draw_errand(rng, TEST_NAMES if split == "test" else TRAIN_NAMES)
            record = {"dialogue": dialogue(rng, errand), "summary": summary(errand)}
            if record["summary"] in seen or (split != "test" and errand.combination in tested):
                continue
            seen.add(record["summary"])
            if split == "test":
                tested.add(errand.combination)
            splits[split].append(record)
    return splits
