"""Encoders: pictures and texts to features of unit length, float32; metrics.py makes numbers of them.

The paper measures with DINO ViT-S/16 (arXiv 2104.14294) and CLIP ViT-B/32 (arXiv 2103.00020); pocket has small ones
of its own, so that everything runs offline. Any other checkpoint of a kind in KINDS serves too, by hub id or folder.
A metric is only as comparable as its preprocessing, so that is pinned (preprocessing.py) and stands with the weights in
`recipe()`, which belongs in the results.

Give photos and samples at one size. A photo of 4000 px keeps detail that no sample of 512 px can have.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dreamlab.errors import UserError, did_you_mean, first_line
from dreamlab.hub import go_offline_if_silent
from dreamlab.preprocessing import Colour, Preprocessing, read_preprocessing

POCKET = Path(__file__).parent / "models" / "pocket-encoders"
NAMES = {  # short name -> hub id or folder
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-small",
    "clip": "openai/clip-vit-base-patch32",
    "pocket-dino": str(POCKET / "dino"),
    "pocket-clip": str(POCKET / "clip"),
}
BATCH = 64  # pictures or texts at once; the features don't depend on it


class Encoder(Protocol):
    """Anything that describes pictures, and perhaps texts, by features of unit length."""

    name: str

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features `(N, d)` float32 on the CPU, each of length 1."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """The same of texts, in the space of `images`; UserError where the encoder reads none."""
        ...

    def recipe(self) -> dict[str, Any]:
        """What made the features: weights and preprocessing, as plain values for the results."""
        ...


def _class_token(model: Any, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).last_hidden_state[:, 0]


def _clip_image(model: Any, pixels: Tensor) -> Tensor:
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def _clip_text(model: Any, tokens: Any) -> Tensor:
    return model.text_projection(model.text_model(**tokens).pooler_output)


@dataclass(frozen=True)
class Kind:
    """How checkpoints of one `model_type` are loaded and asked; mean and std where the checkpoint names none."""

    model_class: str  # of transformers
    options: dict[str, Any]
    describe: Callable[[Any, Tensor], Tensor]
    mean: Colour = (0.485, 0.456, 0.406)  # ImageNet's
    std: Colour = (0.229, 0.224, 0.225)
    read: Callable[[Any, Any], Tensor] | None = None  # of texts


KINDS = {  # model_type in a checkpoint's config.json
    "vit": Kind("ViTModel", {"add_pooling_layer": False}, _class_token),
    "dinov2": Kind("Dinov2Model", {}, _class_token),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", {}, _class_token),
    "clip": Kind(
        "CLIPModel", {}, _clip_image, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
        _clip_text,
    ),
}  # fmt: skip


class TransformersEncoder:
    """A checkpoint of transformers, frozen, float32, on `device`."""

    def __init__(
        self, name: str, kind: Kind, model: nn.Module, preprocessing: Preprocessing, tokenizer: Any,
        weights: dict[str, str], device: torch.device,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.preprocessing, self.weights = name, kind, preprocessing, weights
        self.model, self.tokenizer, self.device = model, tokenizer, device

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Features `(N, d)` of pictures of any sizes."""
        found = []
        for part in _parts(images):
            pixels = torch.stack([self.preprocessing(image) for image in part]).to(self.device)
            found.append(F.normalize(self.kind.describe(self.model, pixels), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features `(N, d)` of texts, cut at the encoder's length; UserError where the kind reads none."""
        if self.kind.read is None:
            raise UserError(f"The encoder {self.name!r} reads no text. Use a CLIP for prompts, such as clip.")
        found = []
        for part in _parts(texts):
            tokens = self.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
            found.append(F.normalize(self.kind.read(self.model, tokens), dim=1).cpu())
        return torch.cat(found)

    def recipe(self) -> dict[str, Any]:
        """Name, weights (hub revision, or the files' hash) and preprocessing."""
        return {"encoder": self.name, **self.weights, "preprocessing": asdict(self.preprocessing)}


def _parts(things: Sequence[Any]) -> Iterator[list[Any]]:
    if not things:
        raise UserError("There is nothing to encode: give at least one picture or text.")
    return (list(things[start : start + BATCH]) for start in range(0, len(things), BATCH))


def load(source: str, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a short name in NAMES, a hub id or a local folder; UserError where it is none or incomplete."""
    import transformers

    place = NAMES.get(source, source)
    folder = Path(place).expanduser()
    config = _read_json(source, place, "config.json")
    if config is None:
        raise UserError(f"{source!r} is no encoder: it has no config.json. Give a folder of transformers, or a hub id.")
    kind = KINDS.get(config.get("model_type", ""))
    if kind is None:
        raise UserError(
            f"{source!r} holds a {config.get('model_type', 'model of no type')!r}, which is no encoder that dreamlab "
            f"knows.{did_you_mean(str(config.get('model_type')), KINDS)}"
        )
    where = str(folder) if folder.is_dir() else place
    try:
        # fp16 files become float32 here: features are compared to the fourth digit
        model, report = getattr(transformers, kind.model_class).from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **kind.options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(where) if kind.read else None
    except Exception as error:  # a damaged file raises what its format's reader likes
        raise UserError(f"The encoder {source!r} cannot be loaded: {first_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise UserError(f"The encoder {source!r} lacks {len(missing)} weights, such as {missing[0]!r}. Get it anew.")
    image_px = config.get("vision_config", config).get("image_size", 224)
    settings = _read_json(source, place, "preprocessor_config.json")
    preprocessing = read_preprocessing(settings, image_px, kind.mean, kind.std)
    weights = {"weights": place, "revision": str(getattr(model.config, "_commit_hash", None))}
    if folder.is_dir():  # a path says little on another machine
        weights = {"weights": source, "sha256": _digest(folder)}
    model.to(device).eval().requires_grad_(False)
    return TransformersEncoder(source, kind, model, preprocessing, tokenizer, weights, torch.device(device))


def _read_json(source: str, place: str, name: str) -> dict[str, Any] | None:
    """A file of the checkpoint, from its folder or the hub; None where the checkpoint has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = Path(place).expanduser() / name
    if not path.parent.is_dir():
        unreachable = UserError(
            f"The encoder {source!r}, {place!r} of the hub, can't be fetched. Give a folder that holds it."
            if source in NAMES
            else f"There is no encoder at {source!r}.{did_you_mean(source, NAMES)} Or give a folder, or a hub id that"
            " can be fetched: this one cannot."
        )
        go_offline_if_silent()
        try:
            path = Path(hf_hub_download(place, name))
        except LocalEntryNotFoundError:  # offline; a kind of EntryNotFoundError too
            raise unreachable from None
        except EntryNotFoundError:
            return None
        except (OSError, ValueError):
            raise unreachable from None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except ValueError:
        raise UserError(f"{path} is not readable as JSON. Get the encoder {source!r} anew.") from None


def _digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        state.update(path.read_bytes())
    return state.hexdigest()
