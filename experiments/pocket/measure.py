"""Measures an exported pocket.

    python experiments/pocket/measure.py --pipeline DIR --photos DIR --classifier FILE --out DIR

Everything is drawn by a plain `StableDiffusionPipeline.from_pretrained(folder)`, so that what is measured is what a
user loads. Words are judged by the functions that made the captions (`dreamlab.words`), names and orientation by the
classifier. The figures go to `results.json` (later calls add to it), pictures of samples beside it.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import classifier
import photos
import torch
from captions import FREE_WORDS, prompt
from compress import psnr
from copies import copies
from diffusers import StableDiffusionPipeline
from pictures import grid
from torch import Tensor

from dreamlab.words import BACKGROUNDS, STYLES, obeys_background, obeys_style

STEPS, GUIDANCE, SEED = 25, 4.5, 20_000
PARTS = ("vae", "classes", "styles", "backgrounds", "identifiers", "copies", "pictures", "cost")
SHOWN = ("dog", "cat", "teapot", "car", "penguin", "backpack", "lion", "butterfly")


class Bench:
    """The pipeline, the photos and the judge, with one way to draw samples."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.args = args
        self.pipeline = StableDiffusionPipeline.from_pretrained(args.pipeline).to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.judge, self.class_words = classifier.load(args.classifier, self.device)
        self.seen = photos.read(args.photos / "train", args.limit).to(self.device)
        self.held_out = photos.read(args.photos / "val", args.limit).to(self.device)

    def draw(self, prompts: Sequence[str], seed: int = SEED, batch: int = 250) -> Tensor:
        """One sample of each prompt, (N, 3, 64, 64) in [0, 1]; sample i depends on seed + i alone."""
        found = []
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
            drawn = self.pipeline(
                part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise, output_type="pt"
            )
            found.append(drawn.images.float())
        return torch.cat(found)

    def named(self, x: Tensor, words: Sequence[str]) -> Tensor:
        """Whether the judge names each sample by its class word, (N,) bool."""
        wanted = torch.tensor([self.class_words.index(word) for word in words], device=self.device)
        return classifier.judge(self.judge, x)[0] == wanted


def share(hits: Tensor) -> float:
    """The mean of booleans, to four digits."""
    return round(hits.float().mean().item(), 4)


def by_word(hits: Tensor, words: Sequence[str]) -> dict[str, float]:
    """Share of hits for each distinct word, in order of appearance."""
    return {w: share(hits[[i for i, other in enumerate(words) if other == w]]) for w in dict.fromkeys(words)}


def vae(bench: Bench) -> dict:
    """Held-out reconstruction, and what the judge makes of the held-out photos themselves."""
    data = bench.held_out
    x = data.batch(torch.arange(len(data.pixels), device=bench.device))
    names, down = classifier.judge(bench.judge, x)
    _, turned = classifier.judge(bench.judge, x.rot90(2, (2, 3)))
    words = [data.class_words[i] for i in data.cls.tolist()]
    words_checked = {
        style: {
            "photos with the transform": share(obeys_style(photos.apply_style(x, style), style)),
            "photos as they are": share(obeys_style(x, style)),
        }
        for style in STYLES
        if style != "upside down"
    }
    return {
        "psnr_db": round(psnr(bench.pipeline.vae, data), 3),
        "classifier_accuracy": share(names == data.cls),
        "classifier_accuracy_by_word": by_word(names == data.cls, words),
        "orientation_accuracy": share(torch.cat([~down, turned])),
        "orientation_accuracy_by_word": by_word(torch.cat([~down, turned]), words * 2),
        "style_test_on_photos": words_checked,
    }


def classes(bench: Bench) -> dict:
    """Guided samples of "a photo of a <class word>", named by the judge."""
    words = (bench.class_words * (bench.args.samples // len(bench.class_words) + 1))[: bench.args.samples]
    bench.samples = bench.draw([prompt(word) for word in words])
    hits = bench.named(bench.samples, words)
    return {"samples": len(words), "named_right": share(hits), "by_word": by_word(hits, words)}


def styles(bench: Bench, each: int = 5) -> dict:
    """Style words obeyed; "upside down" is asked of the words whose photos the judge can orient (90% held out)."""
    oriented = [w for w, a in bench.results["vae"]["orientation_accuracy_by_word"].items() if a >= 0.9]
    found, all_hits = {}, []
    for style in STYLES:
        words = (oriented if style == "upside down" else bench.class_words) * each
        if not words:
            continue
        x = bench.draw([prompt(word, style=style) for word in words], SEED + 10_000)
        obeyed = classifier.judge(bench.judge, x)[1] if style == "upside down" else obeys_style(x, style)
        upright = x.rot90(2, (2, 3)) if style == "upside down" else x
        found[style] = {
            "obeyed": share(obeyed),
            "named_right": share(bench.named(upright, words)),
            "samples": len(words),
        }
        all_hits.append(obeyed)
    return {"obeyed": share(torch.cat(all_hits)), "upside_down_words": oriented, "by_word": found}


def backgrounds(bench: Bench, each: int = 5) -> dict:
    """Background words obeyed: most of the border carries the colour. "no word" is the rate when nothing is asked."""
    found, all_hits, all_words = {}, [], []
    words = bench.class_words * each
    unasked = bench.draw([prompt(word) for word in words], SEED + 20_000)
    for colour in BACKGROUNDS:
        x = bench.draw([prompt(word, background=colour) for word in words], SEED + 20_000)
        obeyed = obeys_background(x, colour)
        found[colour] = {
            "obeyed": share(obeyed),
            "no word": share(obeys_background(unasked, colour)),
            "named_right": share(bench.named(x, words)),
            "samples": len(words),
        }
        all_hits.append(obeyed)
        all_words += words
    hits = torch.cat(all_hits)
    return {"obeyed": share(hits), "by_word": found, "by_class_word": by_word(hits, all_words)}


def identifiers(bench: Bench, each: int = 6) -> dict:
    """Class word right when a never-seen word stands before it: "a photo of a zwx dog"."""
    words = bench.class_words * each
    told = [f"{FREE_WORDS[i // len(bench.class_words)]} {word}" for i, word in enumerate(words)]
    hits = bench.named(bench.draw([prompt(noun) for noun in told], SEED + 30_000), words)
    bare = bench.named(bench.draw(told, SEED + 30_000), words)
    return {"a photo of a zwx dog": share(hits), "zwx dog": share(bare), "by_word": by_word(hits, words)}


def pictures(bench: Bench) -> dict:
    """Samples of every class word, and of the words that change a picture; no photo is shown."""
    rows = {word: bench.draw([prompt(word)] * 9, SEED + 40_000) for word in bench.class_words}
    grid(rows, [], bench.args.out / "samples.jpg")
    asked = {"a photo of a ...": {}}
    asked |= {words: {"style": style} for style, words in STYLES.items()}
    asked |= {f"on a {colour} background": {"background": colour} for colour in BACKGROUNDS}
    rows = {text: bench.draw([prompt(w, **how) for w in SHOWN], SEED + 50_000) for text, how in asked.items()}
    rows["a photo of a zwx ..."] = bench.draw([prompt(f"zwx {w}") for w in SHOWN], SEED + 50_000)
    grid(rows, list(SHOWN), bench.args.out / "words.jpg")
    return {"files": ["samples.jpg", "words.jpg"]}


def cost(bench: Bench) -> dict:
    """Seconds on two CPU cores: an update of one instance and one prior latent; 4 pictures of 20 guided steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    pipe = bench.pipeline.to("cpu", torch.float32)
    weights = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, 1e-6)
    ids = pipe.tokenizer(["a zwx dog", "a dog"], padding="max_length", return_tensors="pt").input_ids
    updates, samplings = [], []
    for _ in range(3):
        start = time.perf_counter()
        pipe(["a dog"] * 4, num_inference_steps=20, guidance_scale=GUIDANCE)
        samplings.append(time.perf_counter() - start)
    for _ in range(12):
        start = time.perf_counter()
        pred = pipe.unet(torch.randn(2, 8, 16, 16), torch.randint(0, 1000, (2,)), pipe.text_encoder(ids)[0]).sample
        pred.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        updates.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return {"update_s": round(sorted(updates)[6], 3), "four_pictures_s": round(sorted(samplings)[1], 2)}


def main() -> None:
    """Runs the asked parts in order and writes what they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pipeline", "photos", "classifier", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="cost: on a CPU")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--limit", type=int, help="photos per fine name (smoke tests)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    bench = Bench(args)
    bench.results = json.loads(file.read_text()) if file.exists() else {}
    parts = {f.__name__: f for f in (vae, classes, styles, backgrounds, identifiers, pictures, cost)}
    parts["copies"] = lambda b: copies(b.judge, b.seen, b.held_out, b.samples)
    for name in [part for part in PARTS if part in args.parts]:
        with torch.set_grad_enabled(name == "cost"):
            bench.results[name] = parts[name](bench)
        print(name, json.dumps(bench.results[name]), flush=True)
        file.write_text(json.dumps(bench.results, indent=1))


if __name__ == "__main__":
    main()
