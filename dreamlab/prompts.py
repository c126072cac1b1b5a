"""Prompts: how the identifier, the class word and an article become sentences.

The paper's instance prompt is "a [identifier] [class noun]", its class prompt "a [class noun]" (arXiv 2208.12242,
section 3.2). Sample prompts are templates in which {token} and {class_word} are filled in.
"""

import string
from collections.abc import Sequence

from dreamlab.errors import UserError

FIELDS = ("token", "class_word")


def with_article(noun: str) -> str:
    """`noun` behind "a" or "an": a dog, an orange. By letter, which is right for the nouns that photos show."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def instance_prompt(token: str, class_word: str) -> str:
    """The default prompt of the subject's photos."""
    return f"a photo of a {token} {class_word}"


def class_prompt(class_word: str) -> str:
    """The default prompt of the class images."""
    return f"a photo of {with_article(class_word)}"


def fill(template: str, token: str, class_word: str) -> str:
    """A sample prompt with its fields filled in; UserError for a field that does not exist or a stray brace."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"The prompt {template!r} has a stray brace: {error}.") from None
    unknown = fields - set(FIELDS)
    if unknown:
        known = " and ".join(f"{{{name}}}" for name in FIELDS)
        raise UserError(f"The prompt {template!r} has a field {{{sorted(unknown)[0]}}}; there are {known}.")
    if "{class_word}" in template and "{token}" not in template:
        template = template.replace("a {class_word}", with_article(class_word))
    return template.format(token=token, class_word=class_word)


def fill_all(templates: Sequence[str], token: str, class_word: str) -> list[str]:
    """Every template filled in, in order."""
    return [fill(template, token, class_word) for template in templates]
