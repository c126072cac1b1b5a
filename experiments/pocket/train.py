"""Trains pocket: classifier -> autoencoder -> latents -> denoiser -> export, in pieces of a few minutes.

    python experiments/pocket/train.py --photos DIR --state DIR --out DIR --minutes 9
    python experiments/pocket/train.py --photos DIR --state DIR --out DIR --minutes 8 --finish

Each piece does what is left to do until its minutes are over, and ends with an export. `--state` keeps what the next
piece continues from; `--out` receives the results. The last piece (`--finish`) brings the learning rate to zero.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import classifier
import compress
import denoise
import latents
import photos
import tokenizer as tokens
import torch
from captions import FREE_WORDS, every_word
from clock import Clock
from diffusers import AutoencoderKL
from export import CARD, export, pack
from transformers import CLIPTokenizer

from dreamlab.words import BACKGROUNDS, STYLES

EXPORT_S = 20.0  # kept at the end of a piece


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with train/ and val/, see photos.read")
    parser.add_argument("--state", type=Path, required=True, help="where the pieces keep their state")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall time of this piece")
    parser.add_argument("--classifier-s", type=float, default=65.0)
    parser.add_argument("--vae-s", type=float, default=210.0)
    parser.add_argument("--unet-s", type=float, default=640.0, help="planned time of the denoiser over all pieces")
    parser.add_argument("--start", type=Path, help="an exported pocket to continue from when the state is lost")
    parser.add_argument("--finish", action="store_true", help="the last piece: the schedule ends with it")
    parser.add_argument("--limit", type=int, help="photos per fine name (smoke tests)")
    parser.add_argument("--pool-scale", type=float, default=1.0, help="fewer latents (smoke tests)")
    parser.add_argument("--most-steps", type=int, help="steps per stage (smoke tests)")
    parser.add_argument("--batch", type=int, default=512, help="of the denoiser")
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """One piece."""
    args, start = arguments(), time.monotonic()
    args.state.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
    if args.warm:
        return warm(args, device)
    is_first = not (args.state / "pool.pt").exists() and not args.start
    helper = warm_in_background(args) if device.type == "cuda" and is_first else None
    train_photos = photos.read(args.photos / "train", args.limit).to(device)
    tokenizer = tokens.build(every_word(train_photos.fine_names + train_photos.class_words), args.state / "tokenizer")
    judge = the_classifier(args, train_photos, device)
    vae = the_vae(args, train_photos, judge, device)
    pool = the_pool(args, train_photos, vae, tokenizer)
    if helper:
        helper.terminate()  # long done, unless the compiler is very slow here
    learner = denoise.Learner(tokenizer, device)
    if (args.state / "learner.pt").exists():
        learner.load(args.state / "learner.pt")
    elif args.start:
        learner.start(args.start, args.state / "log.jsonl")
    left_s = 60 * args.minutes - (time.monotonic() - start) - EXPORT_S
    plan_s = learner.elapsed_s + left_s if args.finish else args.unet_s
    clock = clock_of(args, "denoise", max(0.0, min(left_s, plan_s - learner.elapsed_s)), learner.elapsed_s, plan_s)
    learner.train(pool, clock, args.batch)
    learner.save(args.state / "learner.pt")
    deliver(args, vae, learner, tokenizer, train_photos)


def clock_of(
    args: argparse.Namespace, name: str, run_s: float, before_s: float = 0.0, plan_s: float | None = None
) -> Clock:
    """A stage's clock; its losses go to the log."""
    log = args.state / "log.jsonl"
    return Clock(name, run_s, log, before_s=before_s, plan_s=plan_s, most_steps=args.most_steps)


def the_classifier(args: argparse.Namespace, data: photos.Photos, device: torch.device) -> classifier.Classifier:
    """Trained now, or read from the state."""
    file = args.state / "classifier.safetensors"
    if not file.exists():
        net = classifier.train(data, device, clock_of(args, "classifier", args.classifier_s), min(384, args.batch))
        classifier.save(net, data.class_words, file)
        held_out = photos.read(args.photos / "val", args.limit).to(device)
        named, turned = classifier.judge(net, held_out.batch(torch.arange(len(held_out.pixels), device=device)))
        right, upright = (named == held_out.cls).float().mean(), 1 - turned.float().mean()
        print(f"held-out: class word right {right:.3f}, upright {upright:.3f}")
    return classifier.load(file, device)[0]


def the_vae(
    args: argparse.Namespace, data: photos.Photos, judge: classifier.Classifier, device: torch.device
) -> AutoencoderKL:
    """Trained now, or read from the state."""
    folder = args.state / "vae"
    if not folder.exists():
        vae = compress.train(data, judge, device, clock_of(args, "vae", args.vae_s), min(256, args.batch))
        held_out = photos.read(args.photos / "val", args.limit).to(device)
        print(f"held-out: PSNR {compress.psnr(vae, held_out):.2f} dB")
        for weight in vae.parameters():
            weight.data = weight.data.contiguous()
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).to(device, memory_format=torch.channels_last).eval()


def the_pool(
    args: argparse.Namespace, data: photos.Photos, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> latents.Pool:
    """Encoded now, or read from the state."""
    file = args.state / "pool.pt"
    if not file.exists():
        pool = latents.build(data, vae, tokenizer, args.pool_scale)
        torch.save(vars(pool), file)
        print(f"pool: {len(pool.latents):,} latents, {len(pool.token_ids):,} captions")
    return latents.Pool(**torch.load(file, map_location=data.pixels.device, weights_only=True))


def warm_in_background(args: argparse.Namespace) -> subprocess.Popen:
    """Compiles the networks in a second process while the classifier trains; the compiler's cache passes them on."""
    return subprocess.Popen([sys.executable, *sys.argv, "--warm"], stdout=subprocess.DEVNULL)


def warm(args: argparse.Namespace, device: torch.device) -> None:
    """Three steps of each compiled network on noise."""
    data = photos.read(args.photos / "train", 20).to(device)
    judge = classifier.Classifier(len(data.class_words)).to(device).eval().requires_grad_(False)
    judge.to(memory_format=torch.channels_last)
    compress.train(data, judge, device, Clock("warm vae", 300, most_steps=3))
    tokenizer = tokens.build(every_word(data.fine_names + data.class_words), args.state / "tokenizer-warm")
    pool = latents.Pool(torch.randn(99, 8, 16, 16, device=device), *torch.zeros(3, 99, 24, device=device).long())
    pool.caption, pool.empty = pool.caption[:, 0], pool.empty[0]
    denoise.Learner(tokenizer, device).train(pool, Clock("warm denoiser", 300, most_steps=3), args.batch)


def deliver(
    args: argparse.Namespace,
    vae: AutoencoderKL,
    learner: denoise.Learner,
    tokenizer: CLIPTokenizer,
    data: photos.Photos,
) -> None:
    """The diffusers folder, in the state and as a cut tar in `--out`, with the classifier and the log."""
    rows = [json.loads(line) for line in (args.state / "log.jsonl").read_text().splitlines()]
    spent = {name: max(r["elapsed_s"] for r in rows if r["stage"] == name) for name in {r["stage"] for r in rows}}
    training = (
        f"Autoencoder {spent.get('vae', 0):.0f} s; then U-Net and text encoder together, {learner.updates:,} updates "
        f"of {args.batch} latents in {learner.elapsed_s:.0f} s: v-prediction, min-SNR 5, AdamW {denoise.LR:g}, "
        "cosine to zero, averaged weights."
    )
    millions = sum(p.numel() for m in (vae, learner.unet, learner.text) for p in m.parameters()) / 1e6
    card = CARD.format(
        millions=millions,
        words=", ".join(data.class_words),
        kinds=", ".join(sorted(set(data.fine_names) - set(data.class_words))),
        styles=", ".join(STYLES),
        grounds=", ".join(BACKGROUNDS),
        free=FREE_WORDS[0],
        training=training,
    )
    export(vae, learner, tokenizer, card, args.state / "pocket")
    pack(args.state / "pocket", args.out)
    for name in ("classifier.safetensors", "log.jsonl"):
        (args.out / name).write_bytes((args.state / name).read_bytes())
    print(training)


if __name__ == "__main__":
    main()
