"""Memory and speed of the recipes people choose between, at Stable Diffusion 1.5's full size on one GPU.

    make memory-table
    python experiments/memory-table/measure.py --work /tmp/memory-table --rows 0 1 2

Neither depends on the values of weights, so the model is a random one of that size and the photos are noise. Each row
is a run of the ordinary command in a process of its own: U-Net trained, latents and text cached, one instance and one
class image per sample, 512 px. Writes results.json, and the table into docs/results.md once all rows are there.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamlab.models import BUNDLED

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent.parent / "docs" / "results.md"
CHECKPOINT, EIGHT = "model.gradient_checkpointing=true", "optimizer=adamw8bit"
# What a user chooses, its settings, and the tutorial author's GB and iterations/s on a T4
ROWS: list[tuple[str, list[str], float, float | None]] = [
    ("fp16, checkpointing, 8-bit", ["precision=fp16", CHECKPOINT, EIGHT], 9.92, 0.93),
    ("fp32, checkpointing, 8-bit", ["precision=fp32", CHECKPOINT, EIGHT], 10.08, 0.42),
    ("fp16, batch 2, checkpointing, 8-bit", ["precision=fp16", "batch_size=2", CHECKPOINT, EIGHT], 10.4, 0.66),
    ("fp16, 8-bit", ["precision=fp16", EIGHT], 11.17, 1.14),
    ("fp32, 8-bit", ["precision=fp32", EIGHT], 11.17, 0.49),
    ("fp16, accumulate 2, checkpointing, 8-bit", ["precision=fp16", "accumulate=2", CHECKPOINT, EIGHT], 11.56, 1.0),
    ("fp16, batch 2, 8-bit", ["precision=fp16", "batch_size=2", EIGHT], 13.67, 0.82),
    ("fp16, accumulate 2, 8-bit", ["precision=fp16", "accumulate=2", EIGHT], 13.7, 0.83),
    ("fp16, checkpointing, 32-bit AdamW", ["precision=fp16", CHECKPOINT], 15.79, 0.77),
    ("fp16, 32-bit AdamW", ["precision=fp16"], 17.7, None),
]


def full_size_model(folder: Path) -> Path:
    """A random model of Stable Diffusion 1.5's architecture, with pocket's tokenizer; made once."""
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
            set_alpha_to_one=False,
        ),
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def noise_photos(folder: Path) -> Path:
    """Seven pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def measure(settings: list[str], work: Path, steps: int) -> dict[str, float]:
    """Peak GiB and updates/s (median, the first three updates left out) of one run, which is deleted afterwards."""
    run = work / "runs" / "row"
    command = [
        sys.executable, "-m", "dreamlab.train", "model=sd15", f"model.source={full_size_model(work / 'model')}",
        f"instance_dir={noise_photos(work / 'photos')}", "class_word=dog", "adapter.train=[unet]", f"steps={steps}",
        "num_prior_images=4", "prior.steps=2", "prompts=[]", "logger=none", "resume=never", f"out={run.parent}",
        f"name={run.name}", f"cache_dir={work / 'cache'}", "save_every=1000000", "eval=none",
        *settings,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run)
    many = {key: int(value) for key, _, value in (word.partition("=") for word in settings) if value.isdigit()}
    images = 2 * many.get("batch_size", 1) * many.get("accumulate", 1)
    return {
        "peak_gib": round(max(row["perf/peak_gib"] for row in rows), 2),
        "updates_per_s": round(median(row["perf/images_per_s"] for row in rows[3:]) / images, 2),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """The rows that are there, as markdown."""
    lines = ["| recipe | peak GiB | updates/s | tutorial: GB | tutorial: iterations/s, T4 |", "|---|---|---|---|---|"]
    for name, _, gib, speed in ROWS:
        if name in results:
            row = results[name]
            lines.append(f"| {name} | {row['peak_gib']} | {row['updates_per_s']} | {gib} | {speed or '?'} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the asked rows, keep what is known, write the table when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/memory-table"), help="room for 12 GB")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)))
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results["machine"] = f"{device}, torch {torch.__version__}"
    for index in args.rows:
        name, settings, *_ = ROWS[index]
        results[name] = measure(settings, args.work, args.steps)
        print(name, results[name], flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    if PAGE.is_file() and all(name in results for name, *_ in ROWS):
        page = PAGE.read_text(encoding="utf-8")
        start, end = "<!-- memory-table -->\n", "\n<!-- end -->"
        before, after = page.split(start)[0], page.split(end)[-1]
        PAGE.write_text(f"{before}{start}{results['machine']}\n\n{table(results)}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
