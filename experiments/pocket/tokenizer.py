"""A small CLIPTokenizer: byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) of about 2,000 tokens.

Every word of the captions is one token; ordinary English breaks into a few pieces and any byte string into some; and
each meaningless word of `captions.py` is exactly one token, as `zwx` should be. The merges of those come last, so
that no ordinary word is cut differently because of them.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from captions import FREE_WORDS, TAUGHT_WORDS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 24
VOCABULARY = 2048
ENGLISH = """
about above across after again against all along alone also always among ancient and animal another are around art
as at autumn away baby back ball bank barn basket bath be beach bear beautiful because bed bedroom beside best better
between big bird birthday blanket boat book boots both bottle bow bowl box boy branch bridge bright bronze bucket
building but by cake camera candle cap car carpet cartoon castle chair child christmas city clay clean close closeup
cloud coat cobblestone cold colorful colour couch country crown cube cup cute dark day desert desk detailed
different digital dirt down drawing dream dress drinking driving dusk eating eiffel ever every eye face factory fall
far fast field film fire firefighter floating floor flower flying food for forest front frozen fruit funny garden
giant girl glass glasses gold good grand grass great ground hand hanging happy has hat head high hill holding home
hot house huge ice in inside into island is it its jacket japanese jungle jumping just kitchen lake large lawn leaf
leather left library light like line little living long looking made man many market metal mirror modern moon
morning mountain mud museum near neon new next night ocean of off oil old on one open or orange oil original outdoors
outfit outside over own paint painting palm paper park party pasta people person photograph picture pillow pink pirate
place plain plastic plate playing police pool portrait poster purple rain rainbow rainy realistic red rice right
river road rock room rug running sand santa scarf scene sea shelf shiny shirt shoes shore shower side silver sitting
sketch skull sky sleeping small smiling snow snowy sofa some space spring square stage standing star station statue
stone street studio summer sun sunflower sunglasses sunny sunrise sunset superhero suit swimming table tall
temple the their them there these this through tie to top tower town toy train travel tree tropical under underwater
up urban vase very view village vintage walking wall warm watch water watercolor wave wearing wet wheat white wide
wild window winter with witch without wizard woman wooden wood world yellow yoga young zoo
"""


def build(words: list[str], folder: Path) -> CLIPTokenizer:
    """Trains the tokenizer on caption `words` and English, saves it to `folder`, and checks what was saved."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + WORD_END for letter in alphabet]
    room = VOCABULARY - 2 - 2 * len(TAUGHT_WORDS + FREE_WORDS)
    merges = _learn(words, room)
    tokens += [a + b for a, b in merges]
    known = set(tokens)
    for word in TAUGHT_WORDS + FREE_WORDS:
        for pair in _missing_merges(word, merges):
            merges.append(pair)
            if "".join(pair) not in known:
                known.add("".join(pair))
                tokens.append("".join(pair))
    tokens = [*dict.fromkeys(tokens), START, END]
    _write(tokens, merges, Path(folder))
    return _checked(Path(folder), words)


def _learn(words: Iterable[str], room: int) -> list[tuple[str, str]]:
    """BPE merges, most frequent first; caption words weigh enough to become whole tokens."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    letters = pre_tokenizers.Split(Regex(r"[\p{L}]+"), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([letters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, min_frequency=1, show_progress=False
    )
    learner.train_from_iterator([*(" ".join(words) for _ in range(100)), ENGLISH], trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    return merges[: room - 2 * len(alphabet)]


def _missing_merges(word: str, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The further merges that make `word` one token."""
    pieces = [*word[:-1], word[-1] + WORD_END]
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [(rank[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in rank]
        if not pairs:
            break
        i = min(pairs)[1]
        pieces[i : i + 2] = ["".join(pieces[i : i + 2])]
    missing = []
    while len(pieces) > 1:
        missing.append((pieces[-2], pieces[-1]))
        pieces[-2:] = ["".join(pieces[-2:])]
    return missing


def _write(tokens: list[str], merges: list[tuple[str, str]], folder: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    save(CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH), folder)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Saves tokenizer.json and, for older readers, the vocab.json and merges.txt that it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    lines = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def _checked(folder: Path, words: list[str]) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for word in [*TAUGHT_WORDS, *FREE_WORDS, *words]:
        if len(ids := tokenizer(word).input_ids) != 3:
            raise SystemExit(f"The tokenizer cuts {word!r} into {len(ids) - 2} tokens: give it a larger vocabulary.")
    return tokenizer
