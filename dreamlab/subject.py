"""What is being taught: the photos of one or several subjects, their prompts, and a hash of all of it.

Everything is read and decoded once before a weight loads, so that a broken photo is a sentence and no traceback an
hour later. Called by checks.py.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dreamlab import prompts
from dreamlab.concepts import Given, read_concepts
from dreamlab.demo import demo_photos
from dreamlab.errors import UserError
from dreamlab.photos import UPRIGHT, Loading, caption_of, digest, has_alpha, list_images, mask_of, read_mask, read_photo
from dreamlab.schema import Data, Train

AUTO = "auto"  # in place of a token: the best one that naming.py finds
ENOUGH_TO_HOLD_ONE_OUT = 5


@dataclass(frozen=True)
class Photo:
    """A photo, what it shows in words, and where its mask is: a file, itself (its transparency), or nowhere."""

    path: Path
    prompt: str
    mask: Path | None = None


@dataclass(frozen=True)
class Concept:
    """One subject: its photos, the prompts of both halves of the loss, and the person's own class images."""

    token: str
    class_word: str
    instance_prompt: str
    class_prompt: str
    photos: list[Photo]
    held_out: list[Photo]  # photos that are not learnt from, to measure with
    own: list[Photo]  # class images that the person has; the rest is drawn
    repeats: int = 1


@dataclass(frozen=True)
class Subject:
    """All that a run teaches, in a fixed order, and the hash of its content."""

    concepts: list[Concept]
    digest: str
    sample_prompts: list[str]

    @property
    def photos(self) -> list[Path]:
        """Every photo's file."""
        return [photo.path for concept in self.concepts for photo in concept.photos]

    @property
    def instance_prompt(self) -> str:
        """The first subject's."""
        return self.concepts[0].instance_prompt

    @property
    def class_prompt(self) -> str:
        """The first subject's."""
        return self.concepts[0].class_prompt


def read_subject(config: Train) -> Subject:
    """The subject or subjects that the settings name; UserError at the first thing that is wrong."""
    if config.concepts:
        if config.instance_dir != "demo" or config.class_word or config.class_dir:
            raise UserError(
                "concepts= names every subject's folders and words: leave out instance_dir, class_word and class_dir."
            )
        givens = read_concepts(config.concepts)
        if any(given.token == AUTO for given in givens):
            raise UserError(
                f"concepts={config.concepts}: token: auto chooses for one subject alone. Give each a token of its own;"
                " python -m dreamlab.tokens lists some."
            )
    else:
        word = config.class_word
        if word is None and config.instance_dir == "demo":
            word = "cat"
        if word is None:
            raise UserError("class_word is missing: say what the photos show, such as class_word=dog.")
        givens = [
            Given(
                config.instance_dir, config.instance_prompt, config.class_prompt, config.class_dir, config.token, word
            )
        ]
    concepts = [_concept(given, config) for given in givens]
    tokens = [concept.token for concept in concepts]
    if len(set(tokens)) < len(tokens):
        raise UserError(
            f"concepts={config.concepts}: two subjects share a token ({', '.join(tokens)}). Give each its own."
        )
    filled = [prompts.fill_all(config.prompts, concept.token, concept.class_word) for concept in concepts]
    return Subject(concepts, _digest(concepts), list(dict.fromkeys(prompt for some in filled for prompt in some)))


def loading_of(data: Data) -> Loading:
    """How the run's pictures become pixels."""
    return Loading(data.exif, data.background, data.resample)


def _concept(given: Given, config: Train) -> Concept:
    token, class_word, instance_prompt, class_prompt = _words(given)
    loading = loading_of(config.data)
    photos = find_photos(given.instance_dir, loading)
    found = [_photo(path, instance_prompt, token, class_word, config, loading) for path in photos]
    if config.data.mask == "file" and not any(photo.mask for photo in found):
        example = photos[0].stem + ".mask.png"
        raise UserError(f"data.mask=file: no photo in {given.instance_dir} has a mask beside it, such as {example}.")
    if config.data.mask == "alpha" and not any(has_alpha(path) for path in photos):
        raise UserError(
            f"data.mask=alpha: no photo in {given.instance_dir} is transparent anywhere. Use data.mask=none."
        )
    own = []
    if given.class_dir and config.prior_weight > 0 and config.prior.kind != "none":
        may_be_empty = config.concepts is not None  # there, as in the tutorial, it may be a folder still to be filled
        own = [
            _photo(path, class_prompt, token, class_word, config, None)
            for path in own_images(Path(given.class_dir).expanduser(), may_be_empty)
        ]
    learnt, held_out = _set_aside(found, config.data.holdout, given.instance_dir)
    return Concept(token, class_word, instance_prompt, class_prompt, learnt, held_out, own, given.repeats)


def _set_aside(photos: list[Photo], holdout: int | None, folder: str) -> tuple[list[Photo], list[Photo]]:
    """What is learnt from, and the last photos by name, which are only measured with."""
    count = (1 if len(photos) >= ENOUGH_TO_HOLD_ONE_OUT else 0) if holdout is None else holdout
    if count >= len(photos):
        raise UserError(f"data.holdout={count} leaves none of the {len(photos)} photos in {folder} to learn from.")
    return photos[: len(photos) - count], photos[len(photos) - count :]


def _words(given: Given) -> tuple[str, str, str, str]:
    """Token, class word and both prompts, checked and filled in."""
    token, class_word = (given.token or "").strip(), " ".join((given.class_word or "").split())
    if not token or len(token.split()) != 1:
        raise UserError(f"token={given.token!r}: the identifier is one word without spaces, such as zwx.")
    if not class_word:
        raise UserError("class_word is empty: say what the photos show, such as class_word=dog.")
    if token.lower() in class_word.lower().split():
        raise UserError(
            f"token and class_word are both {token!r}: the identifier must be a word of its own, such as zwx."
        )
    filled = []
    for key, prompt in (("instance_prompt", given.instance_prompt), ("class_prompt", given.class_prompt)):
        if prompt is not None and not prompt.strip():
            raise UserError(f"{key} is empty. Leave it out to have it made from token and class_word.")
        filled.append(prompt and prompts.fill(prompt, token, class_word))
    made = prompts.instance_prompt(token, class_word), prompts.class_prompt(class_word)
    return token, class_word, filled[0] or made[0], filled[1] or made[1]


def _photo(path: Path, prompt: str, token: str, class_word: str, config: Train, loading: Loading | None) -> Photo:
    """A picture with its caption, and, where `loading` is given, its mask looked at."""
    caption = caption_of(path) if config.data.captions else None
    if caption:
        try:
            text = " ".join(caption.read_text(encoding="utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The caption {caption} cannot be read as UTF-8 ({error}). Save it anew, or data.captions=false."
            ) from None
        if not text:
            raise UserError(f"The caption {caption} is empty. Fill it, remove it, or set data.captions=false.")
        prompt = prompts.fill(text, token, class_word)
    if loading is None or config.data.mask == "none":
        return Photo(path, prompt)
    if config.data.mask == "alpha":
        return Photo(path, prompt, path)
    mask = mask_of(path)
    if mask:
        try:
            size, of_photo = read_mask(mask, loading, is_alpha=False).size, read_photo(path, loading).size
        except OSError as error:
            raise UserError(f"The mask {mask} cannot be read ({error}). Remove it or save it anew.") from None
        if abs(size[0] / size[1] - of_photo[0] / of_photo[1]) > 0.02 * of_photo[0] / of_photo[1]:
            raise UserError(
                f"The mask {mask} is {size[0]}x{size[1]} px, another shape than its photo's"
                f" {of_photo[0]}x{of_photo[1]}."
            )
    return Photo(path, prompt, mask)


def find_photos(instance_dir: str, loading: Loading = UPRIGHT) -> list[Path]:
    """The photos of a folder, sorted by name; UserError where there are none or one cannot be read."""
    folder = demo_photos() if instance_dir == "demo" else Path(instance_dir).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"instance_dir={instance_dir} {what}. Give the folder that holds the subject's photos.")
    photos = list_images(folder)
    if not photos:
        inner = next((path for path in sorted(folder.iterdir()) if path.is_dir() and list_images(path)), None)
        remedy = f"{inner} does: give that." if inner else "Put 3-20 JPEG, PNG or WebP files into it."
        raise UserError(f"instance_dir={instance_dir} holds no photos. {remedy}")
    for path in photos:
        try:
            read_photo(path, loading)
        except OSError as error:
            raise UserError(f"The photo {path} cannot be read ({error}). Remove it or save it anew.") from None
    return photos


def own_images(folder: Path, may_be_empty: bool = False) -> list[Path]:
    """The decodable images of a person's own class folder; UserError where there is none, unless it may be empty."""
    if not folder.is_dir():
        if may_be_empty and not folder.exists():
            return []
        raise UserError(f"class_dir={folder}: there is no such folder.")
    found = [path for path in list_images(folder) if is_decodable(path)]
    if not found and not may_be_empty:
        raise UserError(f"class_dir={folder}: no image in it can be read. Leave class_dir out to have them generated.")
    return found


def is_decodable(path: Path) -> bool:
    """Whether a file is a whole picture."""
    try:
        read_photo(path)
    except OSError:
        return False
    return True


def _digest(concepts: list[Concept]) -> str:
    """Hash of every picture's and mask's content and of every word."""
    pictures = [photo for concept in concepts for photo in (*concept.photos, *concept.held_out, *concept.own)]
    files = [file for photo in pictures for file in (photo.path, photo.mask) if file]
    words = [
        [concept.instance_prompt, concept.class_prompt, concept.repeats, len(concept.held_out)] for concept in concepts
    ]
    text = json.dumps([words, [photo.prompt for photo in pictures], digest(files)])
    return hashlib.sha256(text.encode()).hexdigest()
