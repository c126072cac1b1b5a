"""Masks that are ignored where they are black, shapes in buckets, fixed crops, and latents kept on disk."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings, noise_picture
from PIL import Image
from tiny_models import save_tiny

from dreamlab import assemble, feed
from dreamlab.checks import check
from dreamlab.data import Crops, ImageSet, Item, TrainingData
from dreamlab.loss import dreambooth_loss, per_sample_error
from dreamlab.models import vocabulary
from dreamlab.photos import bucket, list_images
from dreamlab.randomness import choice
from dreamlab.resume import Start
from dreamlab.schema import Train

IDS = torch.arange(24)


def prepared(config: Train) -> tuple[Any, list[ImageSet], Any, Any]:
    """Model, images, module and batches of a run."""
    config, subject = check(config)
    model = assemble.base_model(config)
    sets = feed.image_sets(config, subject, model)
    module = assemble.module(config, model)
    return model, sets, module, iter(feed.batches(config, sets, Start(""), module))


def test_what_is_masked_does_not_count() -> None:
    pred, wanted = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, :, :4] = 1
    expected = (pred - wanted)[..., :4].square().flatten(1).mean(1)
    torch.testing.assert_close(per_sample_error(pred, wanted, mask), expected)
    other = pred.clone()
    other[..., 4:] = 1e6
    is_prior = torch.tensor([False, True, False])
    before, after = (dreambooth_loss(x, wanted, is_prior, 1.0, mask=mask).total for x in (pred, other))
    assert torch.equal(before, after)
    torch.testing.assert_close(per_sample_error(pred, wanted, torch.ones_like(mask)), per_sample_error(pred, wanted))
    assert per_sample_error(pred, wanted, torch.zeros_like(mask)).tolist() == [0, 0, 0]


def test_a_photos_black_half_has_no_gradient_through_the_whole_run(settings: Settings, tmp_path: Path) -> None:
    for number in range(2):
        noise_picture(number, (64, 64)).save(tmp_path / f"{number}.png")
        mask = Image.new("L", (64, 64), 255)
        mask.paste(0, (0, 0, 32, 64))
        mask.save(tmp_path / f"{number}.mask.png")
    model, _sets, module, batches = prepared(settings(f"instance_dir={tmp_path}", "data.mask=file", "resolution=64"))
    batch = next(batches)
    assert batch.mask is not None and batch.mask.shape == (2, 1, 16, 16)
    assert batch.mask[0, 0, :, :8].max() == 0 and batch.mask[0, 0, :, 8:].min() == 1
    assert batch.mask[1].min() == 1, "class images are whole"
    kept: list[torch.Tensor] = []
    predict = model.predict
    model.predict = lambda *given: kept.append(predict(*given).requires_grad_()) or kept[-1]
    losses = module.loss(batch)
    (gradient,) = torch.autograd.grad(losses.total, kept[0])
    assert gradient[0, :, :, :8].abs().max() == 0 and gradient[0, :, :, 8:].abs().min() > 0
    assert gradient[1].abs().min() > 0


def test_alpha_is_a_mask_that_is_cropped_and_mirrored_with_its_photo(tmp_path: Path) -> None:
    image = noise_picture(1, (96, 64)).convert("RGBA")
    alpha = Image.new("L", (96, 64), 0)
    alpha.paste(255, (0, 0, 48, 64))
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    (path,) = list_images(tmp_path)
    images = ImageSet([Item(path, IDS, 24, path)], Crops(64, flip=True, unmasked_weight=0.25), False)
    masks = {}
    for update in range(12):
        region = images.region(1, update, 0, 0, (64, 64))
        masks[region.flip] = images.mask(0, region, (16, 16))
    assert set(masks) == {False, True}
    assert torch.equal(masks[True], masks[False].flip(2))
    assert masks[False][0, :, :7].min() == 1 and masks[False][0, :, 9:].max() == 0.25


@pytest.mark.parametrize(
    ("size", "resolution", "step", "expected"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((3000, 3000), 512, 64, (512, 512)),
        ((768, 512), 512, 64, (384, 640)),  # 1.5: nearer to 1.67 than to 1.29
        ((512, 768), 512, 64, (640, 384)),
        ((1920, 1080), 512, 64, (384, 640)),  # 1.78: nearer to 1.67 than to 1.5 or 2.2
        ((4000, 1000), 512, 64, (256, 1024)),
        ((100, 100), 100, 64, (100, 100)),
        ((96, 64), 64, 8, (48, 80)),
    ],
)
def test_the_bucket_is_the_nearest_shape(size: Any, resolution: int, step: int, expected: Any) -> None:
    height, width = bucket(size, resolution, step)
    assert (height, width) == expected and height * width <= resolution**2


def shaped_photos(folder: Path) -> Path:
    for number, size in enumerate([(96, 64), (64, 96), (64, 64), (96, 64), (120, 80)]):
        noise_picture(number, size).save(folder / f"{number}.png")
    return folder


def test_an_update_holds_one_shape_and_a_pass_shows_every_photo_once(tmp_path: Path) -> None:
    items = [Item(path, IDS, 24) for path in list_images(shaped_photos(tmp_path))]
    data = TrainingData([ImageSet(items, Crops(64, bucket_step=8), False)], seed=3, batch_size=1, accumulate=1)
    seen = Counter()
    for update in range(15):
        shape, members, visits = data.visit(update)
        index = members[choice(3, visits, len(members))]
        assert data.sets[0].shapes[index] == shape
        pixels = data.batch(update, 0).pixel_values
        assert pixels is not None and tuple(pixels.shape[2:]) == shape
        seen[index] += 1
    assert seen == {index: 3 for index in range(5)}


def test_class_images_take_the_shape_of_the_photos_beside_them_and_all_of_it_trains(
    settings: Settings, tmp_path: Path
) -> None:
    words = ("resolution=64", "data.buckets=true", "batch_size=2", "data.flip=true")
    config = settings(f"instance_dir={shaped_photos(tmp_path)}", *words)
    _model, sets, module, batches = prepared(config)
    assert set(sets[0].shapes) == {(48, 80), (80, 48), (64, 64)}
    shapes = set()
    for _ in range(8):
        batch = next(batches)
        assert batch.moments is not None and len(batch.moments[0]) == 4
        shapes.add(tuple(batch.moments[0].shape[2:]))
        assert torch.isfinite(module.loss(batch).total)
    assert shapes == {(12, 20), (20, 12), (16, 16)}


def test_fixed_crops_are_few_and_cached(photos: Path) -> None:
    items = [Item(path, IDS, 24) for path in list_images(photos)]
    images = ImageSet(items, Crops(48, is_random=True, fixed=3, flip=True), False)
    encoded: list[Any] = []

    def encode(path: Path, region: Any, pixels: torch.Tensor) -> Any:
        encoded.append((path, region))
        return pixels, pixels

    images.cache(encode, 1, images.shapes)
    assert len(encoded) == 3 * 3 * 2 == len(set(encoded))
    drawn = {(index, images.region(1, u, 0, index, (48, 48))) for index in range(3) for u in range(200)}
    assert len(drawn) == 18 and all(isinstance(images.picture(*one), tuple) for one in drawn)
    free = ImageSet(items, Crops(48, is_random=True), False)
    assert len({free.region(1, u, 0, 0, (48, 48)) for u in range(50)}) == 50


def test_latents_are_kept_on_disk_until_a_photo_changes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        noise_picture(number).save(folder / f"{number}.png")
    config, subject = check(settings(f"instance_dir={folder}", f"cache_dir={tmp_path / 'cache'}", "prior=none"))
    model = assemble.base_model(config)
    encode, calls = model.encode_images, []
    monkeypatch.setattr(type(model), "encode_images", lambda self, pixels: calls.append(1) or encode(pixels))

    def moments() -> torch.Tensor:
        (images,) = feed.image_sets(config, subject, model)
        return torch.stack([images._moments[key][0] for key in sorted(images._moments, key=lambda key: key[0])])

    first = moments()
    assert len(calls) == 3
    assert torch.equal(moments(), first) and len(calls) == 3
    noise_picture(9).save(folder / "1.png")
    changed = moments()
    assert len(calls) == 4 and [torch.equal(*pair) for pair in zip(first, changed, strict=True)] == [True, False, True]
    for file in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(moments(), changed) and len(calls) == 7, "files that are cut short are made again"


def test_the_tutorials_quirks_change_what_they_say(settings: Settings, tmp_path: Path) -> None:
    half = noise_picture(1, (64, 64)).convert("RGBA")
    half.putalpha(0)
    half.save(tmp_path / "0.png")
    noise_picture(2).save(tmp_path / "1.png")
    data_words = ("resolution=64", "data.crop=random", "data.pairing=by_index", "model.padding=longest")
    given = (f"instance_dir={tmp_path}", *data_words)
    model, sets, _, batches = prepared(settings(*given, "data.background=black", "num_prior_images=3"))
    assert sets[0].image(0).getextrema() == ((0, 0),) * 3
    longest = vocabulary.count_tokens(model, "a photo of a zwx dog")
    for _ in range(6):
        batch = next(batches)
        assert batch.input_ids.shape == (2, longest)
    data = TrainingData(sets, 1, 2, 1, paired=True)
    photo = {sets[0].pixels(i, sets[0].region(1, u, s, i, (64, 64))).sum().item(): i
             for i in range(2) for u in range(4) for s in range(2)}  # fmt: skip
    prior = {sets[1].pixels(i, sets[1].region(1, u, s, i, (64, 64))).sum().item(): i
             for i in range(3) for u in range(4) for s in range(2)}  # fmt: skip
    for update in range(4):
        pixels = data.batch(update, 0).pixel_values
        assert pixels is not None
        sums = [one.sum().item() for one in pixels]
        assert [photo[value] % 3 for value in sums[:2]] == [prior[value] for value in sums[2:]]


def test_another_vae_is_used_everywhere_or_not_for_encoding(settings: Settings, tmp_path: Path) -> None:
    source, other = save_tiny(1, tmp_path / "sd1"), save_tiny(2, tmp_path / "sd2")
    plain, replaced, quirk = (
        prepared(settings(f"model.source={source}", "prior=none", *more))[0:2]
        for more in ((), (f"model.vae={other}",), (f"model.vae={other}", "model.encode_with_own_vae=true"))
    )
    first = [next(iter(sets[0]._moments.values()))[0] for _, sets in (plain, replaced, quirk)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    weights = [model.parts()["vae"].state_dict()["decoder.conv_in.weight"] for model, _ in (plain, replaced, quirk)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
