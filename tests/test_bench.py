"""The benchmark measures the same work in each row, counts it rightly, and goes on where a variant fails."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dreamlab import assemble, feed
from dreamlab.bench import bench, variants
from dreamlab.checks import check
from dreamlab.commands import Bench, Draws
from dreamlab.config import conf_dir, register_schemas
from dreamlab.errors import UserError
from dreamlab.models import find
from dreamlab.plain_loop import PlainLoop
from dreamlab.resume import Start
from dreamlab.roofline import Peak, count_flops, floor_ms, peak_named
from dreamlab.schema import Train
from dreamlab.stopwatch import LoopProfiler, Stopwatch, held_gib, spread
from dreamlab.timings import as_markdown, compared

CPU = torch.device("cpu")


def plain_loop(**changes: Any) -> PlainLoop:
    options: dict[str, Any] = {"precision": "fp32", "device": CPU, "lr": 1e-4}
    return PlainLoop(find("pocket"), **{**options, **changes})


def bench_settings(*words: str) -> Bench:
    register_schemas()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        settings: Any = OmegaConf.to_object(compose("bench", list(words)))
    return settings


@pytest.mark.parametrize("prior_weight", [0.5, 0.0])
def test_the_plain_loss_is_ours(settings: Callable[..., Train], prior_weight: float) -> None:
    config, subject = check(settings("batch_size=2", f"prior_weight={prior_weight}"))
    model = assemble.base_model(config)
    sets = feed.image_sets(config, subject, model)
    module = assemble.module(config, model)
    batch = next(iter(feed.batches(config, sets, Start(""), module)))
    noised = module.noised(batch)
    ours = module.loss(batch, noised).total
    plain = plain_loop(prior_weight=prior_weight).loss(noised.latents, noised.noise, noised.timesteps, batch.input_ids)
    torch.testing.assert_close(plain, ours)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plain_update_trains_what_it_should(photos: Path, precision: str) -> None:
    loop = plain_loop(precision=precision, trains_text=False)
    parts = {"unet": loop.unet, "vae": loop.vae, "text_encoder": loop.text_encoder}
    before = {name: [w.clone() for w in part.parameters()] for name, part in parts.items()}
    files = sorted(photos.iterdir())
    pixels, ids = next(loop.batches([(files, "a photo of a zwx dog"), (files[:1], "a photo of a dog")], 2, 64))

    assert pixels.shape == (4, 3, 64, 64) and ids.shape == (4, loop.tokenizer.model_max_length)
    assert -1 <= pixels.min() < 0 < pixels.max() <= 1
    assert 0 < loop.update(pixels, ids) < 10
    changed = {
        name: any(not torch.equal(old, new) for old, new in zip(before[name], part.parameters(), strict=True))
        for name, part in parts.items()
    }
    assert changed == {"unet": True, "vae": False, "text_encoder": False}
    assert next(loop.unet.parameters()).dtype == torch.float32


def test_flops_of_known_layers_are_their_closed_forms() -> None:
    layer, rows = nn.Linear(5, 7), torch.ones(3, 5)
    assert count_flops(lambda: layer(rows), CPU) == 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(rows).sum().backward(), CPU) == 2 * 2 * 3 * 5 * 7  # and the weight's gradient

    q = torch.ones(2, 4, 16, 8)  # (B, heads, L, d)
    assert count_flops(lambda: scaled_dot_product_attention(q, q, q), CPU) == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_the_floor_adds_arithmetic_and_the_optimizers_traffic() -> None:
    assert floor_ms(2e12, 0, Peak(1000, 4)) == pytest.approx(2)
    assert floor_ms(0, 10**9, Peak(1000, 4)) == pytest.approx(7)  # 28 GB
    assert floor_ms(2e12, 10**9, Peak(1000, 4)) == pytest.approx(9)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", (989, 3.35)), ("NVIDIA H200", (989, 4.8)), ("NVIDIA H100 PCIe", (756, 2.0)),
        ("NVIDIA A100-SXM4-40GB", (312, 1.56)), ("NVIDIA A100-SXM4-80GB", (312, 2.04)), ("Tesla T4", (65, 0.32)),
        ("NVIDIA GeForce RTX 4090", (165, 1.01)), ("NVIDIA GeForce RTX 3090", (71, 0.94)), ("Unheard Of 1", None),
    ],
)  # fmt: skip
def test_cards_are_known_by_their_drivers_names(name: str, peak: tuple[float, float] | None) -> None:
    assert peak_named(name) == peak


def test_times_are_summed_up_by_quantiles() -> None:
    told = spread([float(value) for value in range(11)])
    assert told == {"median": 5, "p10": 1, "p90": 9, "mean": 5}
    assert spread([3.0]) == {"median": 3, "p10": 3, "p90": 3, "mean": 3}


def test_clocks() -> None:
    watch, profiler = Stopwatch(CPU), LoopProfiler(CPU)
    watch.mark()
    profiler.start("[Strategy]S.backward")
    profiler.stop("[Strategy]S.backward")
    assert profiler.inside_s == 0, "it isn't on yet"
    profiler.is_on = True
    with profiler.profile("[LightningModule]M.optimizer_step"), profiler.profile("[Strategy]S.training_step"):
        time.sleep(0.02)
    with profiler.profile("[Callback]C.on_train_batch_end"):
        time.sleep(0.02)
    watch.mark()
    (lap_ms,) = watch.laps_ms()
    assert 20 <= 1e3 * profiler.inside_s < lap_ms - 19
    assert 0.05 < held_gib(CPU) < 64


def test_rows_are_compared_with_the_plain_one_of_the_same_work() -> None:
    rows = [
        {"kind": "training", "name": "broken", "is_plain": True, "error": "no"},
        {"kind": "training", "name": "plain", "is_plain": True, "work": {"side": 64}, "ms": {"median": 30.0}},
        {"kind": "training", "name": "ours", "is_plain": False, "work": {"side": 64}, "ms": {"median": 20.0}},
        {"kind": "training", "name": "larger", "is_plain": False, "work": {"side": 128}, "ms": {"median": 90.0}},
        {"kind": "sampling", "name": "draw", "is_plain": False, "batch_size": 4, "images_per_s": 2.0},
    ]
    assert [row.get("times") for row in compared(rows)] == [None, 1, 1.5, None, None]


def test_only_takes_names_that_there_are() -> None:
    assert [v.name for v in variants(bench_settings("only=[ours,plain]"))] == ["plain", "ours"]
    with pytest.raises(UserError, match=r"only=orus: .*'ours'"):
        variants(bench_settings("only=[orus]"))
    with pytest.raises(UserError, match="updates=0"):
        bench(bench_settings("updates=0"))


@pytest.mark.slow
def test_every_variant_has_a_row_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    settings = bench_settings(
        f"out={out}", "warmup=1", "updates=2", "repeats=1", "device=cpu", "settings=['batch_size=1']",
        "+training.unheard=['no_such_key=1']", "+training.wrong=['batch_size=0']",
        "only=[plain,ours,unheard,wrong,draw,plain-draw]",
    )  # fmt: skip
    settings.sampling = {name: Draws("dpm++", 3, 1, plain=name != "draw") for name in ("plain-draw", "draw")}
    bench(settings)
    told = json.loads(out.read_text())
    rows = {row["name"]: row for row in told["rows"]}

    assert list(rows) == ["plain", "ours", "unheard", "wrong", "plain-draw", "draw"]
    assert "no_such_key" in rows["unheard"]["error"] and "batch_size=0" in rows["wrong"]["error"]
    assert rows["plain"]["flops"] == rows["ours"]["flops"] > 1e9
    assert rows["plain"]["trained"] == rows["ours"]["trained"] > 1e6
    for name in ("plain", "ours"):
        row = rows[name]
        assert row["updates"] == 2 and 0 < row["ms"]["p10"] <= row["ms"]["median"] <= row["ms"]["p90"]
        assert row["set_up_s"] > 0 and row["peak_gib"] > 0 and row["times"] > 0
        assert row["share"] is None, "no data sheet says what this CPU could do"
    assert rows["ours"]["loop_ms"] > 0
    assert rows["draw"]["images_per_s"] > 0 and rows["draw"]["times"] > 0
    assert {"torch", "diffusers"} <= set(told["versions"]) and told["threads"] >= 1
    page = out.with_suffix(".md").read_text()
    assert page == as_markdown(told, told["rows"])
    assert all(f"\n| {name} | " in page for name in rows)
