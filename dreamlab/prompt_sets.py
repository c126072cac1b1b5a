"""Prompt sets: what a tuned model is asked to draw when it is measured.

The paper asks each subject for 25 prompts: 20 contexts and 5 properties for objects; 10 contexts, 10 accessories and
5 properties for live subjects (arXiv 2208.12242, section 4.1 and its list of prompts). Beside them stand prompts that
the paper's failures call for: the photos' own near context, the class alone, and things that have nothing to do with
the subject. pocket's sets hold only words that it was trained on.

Templates hold {token} and {class_word}; `prompts.fill` fills them in.
"""

import re
from dataclasses import dataclass

from dreamlab.errors import UserError, did_you_mean
from dreamlab.prompts import with_article

# Class words of which the paper asks the live prompts; a toy or a teddy bear of one is an object
LIVE = {
    "animal", "baby", "bear", "bird", "boy", "butterfly", "cat", "child", "cow", "deer", "dog", "dolphin", "duck",
    "elephant", "face", "fish", "fox", "frog", "giraffe", "girl", "goat", "hamster", "horse", "insect", "kitten",
    "lion", "man", "monkey", "mouse", "panda", "penguin", "person", "pet", "pig", "puppy", "rabbit", "sheep",
    "squirrel", "tiger", "turtle", "woman", "wolf",
}  # fmt: skip


@dataclass(frozen=True)
class PromptSet:
    """Templates by what they test; images of `class_prompts` and `unrelated` are compared with the base model's."""

    near: tuple[str, ...]  # as in the photos: fidelity where nothing else is asked
    far: tuple[str, ...]  # contexts, styles and backgrounds that the photos don't show
    accessories: tuple[str, ...]  # things that a live subject wears
    properties: tuple[str, ...]  # changes of the subject itself
    class_prompts: tuple[str, ...]  # the class without the identifier: PRES and collapse
    unrelated: tuple[str, ...]  # other things: drift

    def subject_prompts(self) -> tuple[str, ...]:
        """Everything that names the subject, near first."""
        return (*self.near, *self.far, *self.accessories, *self.properties)


NEAR = ("a photo of a {token} {class_word}", "a {token} {class_word}")
CONTEXTS = (
    "a {token} {class_word} in the jungle",
    "a {token} {class_word} in the snow",
    "a {token} {class_word} on the beach",
    "a {token} {class_word} on a cobblestone street",
    "a {token} {class_word} on top of pink fabric",
    "a {token} {class_word} on top of a wooden floor",
    "a {token} {class_word} with a city in the background",
    "a {token} {class_word} with a mountain in the background",
    "a {token} {class_word} with a blue house in the background",
    "a {token} {class_word} on top of a purple rug in a forest",
)
OBJECT_CONTEXTS = (
    "a {token} {class_word} with a wheat field in the background",
    "a {token} {class_word} with a tree and autumn leaves in the background",
    "a {token} {class_word} with the Eiffel Tower in the background",
    "a {token} {class_word} floating on top of water",
    "a {token} {class_word} floating in an ocean of milk",
    "a {token} {class_word} on top of green grass with sunflowers around it",
    "a {token} {class_word} on top of a mirror",
    "a {token} {class_word} on top of the sidewalk in a crowded street",
    "a {token} {class_word} on top of a dirt road",
    "a {token} {class_word} on top of a white rug",
)
ACCESSORIES = (
    "a {token} {class_word} wearing a red hat",
    "a {token} {class_word} wearing a santa hat",
    "a {token} {class_word} wearing a rainbow scarf",
    "a {token} {class_word} wearing a black top hat and a monocle",
    "a {token} {class_word} in a chef outfit",
    "a {token} {class_word} in a firefighter outfit",
    "a {token} {class_word} in a police outfit",
    "a {token} {class_word} wearing pink glasses",
    "a {token} {class_word} wearing a yellow shirt",
    "a {token} {class_word} in a purple wizard outfit",
)
PROPERTIES = (
    "a red {token} {class_word}",
    "a purple {token} {class_word}",
    "a shiny {token} {class_word}",
    "a wet {token} {class_word}",
    "a cube shaped {token} {class_word}",
)
CLASS_PROMPTS = ("a photo of a {class_word}", "a {class_word}")
UNRELATED = (
    "a photo of a red sports car", "a bowl of fruit on a table", "a mountain lake at sunset",
    "a portrait of an old man", "a city street at night in the rain", "an oil painting of a sailing ship",
)  # fmt: skip
POCKET_FAR = (
    "a black and white photo of a {token} {class_word}",
    "a sepia photo of a {token} {class_word}",
    "a purple tinted photo of a {token} {class_word}",
    "a blue tinted photo of a {token} {class_word}",
    "a green tinted photo of a {token} {class_word}",
    "a blurry photo of a {token} {class_word}",
    "a pencil sketch of a {token} {class_word}",
    "a photo of a {token} {class_word} on a white background",
    "a photo of a {token} {class_word} on a black background",
    "a photo of a {token} {class_word} on a gray background",
    "a photo of a {token} {class_word} on a green background",
    "a photo of a {token} {class_word} on a blue background",
    "a photo of a {token} {class_word} on a brown background",
)
POCKET_UNRELATED = (
    "a photo of a school bus", "a photo of a teapot", "a photo of a lighthouse", "a photo of a lion",
    "a photo of a king penguin", "a photo of an orange", "a sepia photo of a car", "a photo of a butterfly",
)  # fmt: skip

# The nouns that pocket was trained on, and their kinds
POCKET_CLASSES = (
    "backpack", "beach", "bus", "butterfly", "car", "cat", "coffee", "dog", "fish", "lighthouse", "lion", "orange",
    "penguin", "sandal", "sunglasses", "teapot", "teddy bear", "umbrella",
)  # fmt: skip
POCKET_KINDS = (
    "chihuahua", "convertible", "espresso", "german shepherd", "golden retriever", "goldfish", "labrador retriever",
    "poodle", "seashore", "yorkshire terrier",
)  # fmt: skip

SETS = {
    "object": PromptSet(NEAR, CONTEXTS + OBJECT_CONTEXTS, (), PROPERTIES, CLASS_PROMPTS, UNRELATED),
    "live": PromptSet(NEAR, CONTEXTS, ACCESSORIES, PROPERTIES, CLASS_PROMPTS, UNRELATED),
    "pocket": PromptSet(NEAR, POCKET_FAR, (), (), CLASS_PROMPTS, POCKET_UNRELATED),
}


def is_live(class_word: str) -> bool:
    """Whether the class word's last word is a live subject's: "corgi dog" is, "dog toy" and "teddy bear" are not."""
    words = class_word.lower().split()
    return bool(words) and words[-1] in LIVE and not {"teddy", "stuffed", "plush", "toy"} & set(words)


def unknown_to(source: str, class_word: str) -> str | None:
    """What to say where the miniature model has never seen a class; None where it has, or for any other model."""
    known = (*POCKET_CLASSES, *POCKET_KINDS)
    if source != "pocket" or f" {class_word.lower()}".endswith(tuple(f" {name}" for name in known)):
        return None
    return (
        f"pocket has never seen a {class_word!r}: what it draws will be poor and its verdict without meaning. It knows"
        f" {', '.join(POCKET_CLASSES)}. Other models know more: model=sd15."
    )


def find_set(name: str, class_word: str) -> PromptSet:
    """The set called `name`; "paper" is objects' or live subjects'. Its unrelated prompts spare the class."""
    names = ("paper", *SETS)
    if name not in names:
        raise UserError(f"eval.prompts={name}: there is no such prompt set.{did_you_mean(name, names)}")
    chosen = SETS[name] if name != "paper" else SETS["live" if is_live(class_word) else "object"]
    spared = re.compile(rf"(?<!\w){re.escape(class_word)}(?!\w)", re.IGNORECASE)
    unrelated = tuple(prompt for prompt in chosen.unrelated if not spared.search(prompt))
    return PromptSet(**{**vars(chosen), "unrelated": unrelated})


def without_token(prompt: str, token: str) -> str:
    """`prompt` as CLIP-T compares it: the identifier dropped and its article mended; "a zwx orange" is "an orange"."""
    told = re.search(rf"(?<!\w)(?:(an?)\s+)?{re.escape(token)}\s+(\w+)", prompt, re.IGNORECASE)
    if told:
        noun = told.group(2)
        told_noun = with_article(noun) if told.group(1) else noun
        capital = told.group(0)[0].isupper() and bool(told.group(1))
        put = told_noun[0].upper() + told_noun[1:] if capital else told_noun
        return without_token(prompt[: told.start()] + put + prompt[told.end() :], token)
    return " ".join(re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", "", prompt, flags=re.IGNORECASE).split())
