"""What the training captions say.

DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) asks two things of its base model's language: that a class word means
the whole class, and that an unknown identifier before it changes nothing. So captions name a photo by its fine name
or by its class word, in the several phrasings people prompt with, and some carry a random meaningless word before
the noun. Half of those words are taught here; the others, `zwx` among them, stay unseen and free for subjects.
"""

import random

from dreamlab.words import BACKGROUNDS, STYLES

TAUGHT_WORDS = """
bqz cfj dxk fzp gjw hqd jbx kvf lqz mzh nxj pwq qhb rzf sxv tqk
vjd wzc xbn yqf zkd bxw ckq djz fqn ghx hzv jkp kqx lzj mqv njw
""".split()  # noqa: SIM905 - reads better than 32 quoted words
FREE_WORDS = """
zwx sks ohwx xjy qvk bzj cqx dvq fxz gqj hwz jqm kzw lxq mjx nqz
pzk qxd rqj szx tzq vxk wqh xqz yzk zqp bjq czv dqw fkx gzb hjx
""".split()  # noqa: SIM905 - reads better than 32 quoted words
RARE_SHARE = 0.12  # of the captions, with a meaningless word before the noun
ARTICLELESS_SHARE = 0.15
OPENINGS = {"a photo of ": 0.62, "photo of ": 0.13, "": 0.25}


def with_article(noun: str) -> str:
    """Puts "an" before "orange" and "a" before "dog"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def prompt(noun: str, style: str | None = None, background: str | None = None) -> str:
    """The plain caption: "a photo of a dog", "a sepia photo of a dog on a white background"."""
    words = f"{STYLES[style] if style else 'a photo of'} {with_article(noun)}"
    return f"{words} on {with_article(background)} background" if background else words


def caption(nouns: tuple[str, str], style: str | None, background: str | None, rng: random.Random) -> str:
    """One random caption of a photo whose (fine name, class word) are `nouns`."""
    noun = rng.choice(nouns)
    if rng.random() < RARE_SHARE:
        noun = f"{rng.choice(TAUGHT_WORDS)} {noun}"
    if rng.random() >= ARTICLELESS_SHARE:
        noun = f"the {noun}" if rng.random() < 0.05 else with_article(noun)
    opening = f"{STYLES[style]} " if style else rng.choices(list(OPENINGS), list(OPENINGS.values()))[0]
    ending = f" on {with_article(background)} background" if background else ""
    return opening + noun + ending


def every_word(nouns: list[str]) -> list[str]:
    """All words that a caption can hold, for the tokenizer; meaningless ones left out."""
    told = " ".join([*nouns, *STYLES.values(), *BACKGROUNDS, *OPENINGS, "a an the on background"])
    return sorted(set(told.split()))
