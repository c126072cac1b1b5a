"""Model families: what a text-to-image model must offer to be taught a subject, and the ones there are.

A family is one class in one file. The module, the loss and the samplers know only this protocol; how many text
encoders there are, or what the denoiser is called, is the family's own business.
"""

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dreamlab import garbage
from dreamlab.diffusion import NoiseSchedule
from dreamlab.errors import UserError, did_you_mean, first_line
from dreamlab.hub import go_offline_if_silent
from dreamlab.models.families import FAMILIES, family_in
from dreamlab.processes import local_rank

BUNDLED = {"pocket": Path(__file__).parent / "pocket"}
Conditioning = dict[str, Tensor]  # what a denoiser is told of each sample, `(B, ...)` each: hidden, pooled, sizes


@dataclass(frozen=True)
class Options:
    """How a loaded model is used, apart from which one it is."""

    clip_skip: int = 0  # text encoder layers left out at the end
    zero_terminal_snr: bool = False  # the noise schedule's last step is noise alone
    encode_with_own_vae: bool = False  # another VAE draws, but photos are encoded by the model's own
    without: tuple[str, ...] = ()  # parts that were left out


PLAIN = Options()


class Family(Protocol):
    """A loaded model. Networks are float32 when loaded; latents are already multiplied by the scaling factor."""

    family: ClassVar[str]  # its key in FAMILIES
    schedule: NoiseSchedule
    options: Options
    fingerprint: str  # hash of every weight as it was loaded; "" where nobody has taken it

    def parts(self) -> dict[str, nn.Module]:
        """Every network, by its folder name in diffusers' layout."""
        ...

    def tokenizers(self) -> dict[str, Any]:
        """The tokenizer of each text encoder, by the encoder's part."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, L)` int64, padded or cut to the text encoders' full length, one encoder's after another's."""
        ...

    def encoders(self) -> dict[str, nn.Module]:
        """The networks that `encode_images` uses."""
        ...

    def latent_factor(self) -> int:
        """How many pixels of an image's side one latent stands for."""
        ...

    def encode_text(self, input_ids: Tensor) -> Conditioning:
        """What `predict` is told of the prompts, from token ids `(B, L)`."""
        ...

    def encode_frozen_text(self, input_ids: Tensor) -> Conditioning:
        """The same from encoders that don't learn, which may leave the GPU afterwards."""
        ...

    def prompt_words(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """What the pipeline calls text that has been encoded already, to draw with."""
        ...

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and deviation `(B, C, h, w)` of scaled latents, from pixels `(B, 3, H, W)` in [-1, 1]."""
        ...

    def default_resolution(self) -> int:
        """Side of the square images that the model was trained on, in pixels."""
        ...

    def predict(self, noisy_latents: Tensor, told: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output `(B, C, h, w)` for `schedule.told` of some timesteps, `(B,)`.

        Beside what `encode_text` gives there may be `sizes` `(B, 6)`, photos.micro_conditioning of each sample.
        """
        ...

    def pipeline(self, scheduler: Any | None = None) -> Any:
        """A diffusers pipeline over these very networks (no copies), with the model's own scheduler by default."""
        ...


@contextlib.contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Networks in eval mode and without gradients; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def find(source: str) -> str:
    """A bundled model's folder for its short name, else `source` itself; UserError where a folder cannot be a model."""
    if source in BUNDLED:
        return str(BUNDLED[source])
    folder = Path(source).expanduser()
    runs = sorted(str(path.parent) for path in folder.parent.glob("*/status.json")) if not folder.exists() else []
    looks_local = folder.exists() or runs or source.startswith((".", "/", "~")) or source.count("/") != 1
    if not looks_local:
        return source
    if not folder.exists():
        near = did_you_mean(source, [*BUNDLED, *runs])
        raise UserError(f"There is no model at {source!r}.{near} Or give a hub id, a folder or a file.")
    if is_single_file(source):
        return str(folder)
    if is_snapshot(folder):
        from dreamlab.snapshots import read_about

        try:
            find(read_about(folder)["base"]["source"])
        except RecursionError:
            raise UserError(
                f"The base model of the snapshot {source!r} is in the end itself. Choose another."
            ) from None
        return str(folder)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{source!r} is not a diffusers model: it has no model_index.json. Give the folder that has.")
    return str(folder)


def family_of(source: str) -> str:
    """The family of anything that `load` takes, a snapshot's being its base's."""
    folder = Path(source).expanduser()
    if is_snapshot(folder):
        from dreamlab.snapshots import read_about

        return str(read_about(folder)["base"]["family"])
    return family_in(find(source))


def is_single_file(source: str) -> bool:
    """Whether `source` is a checkpoint in one file, as A1111 and ComfyUI keep them."""
    return source.lower().endswith((".safetensors", ".ckpt")) and Path(source).expanduser().is_file()


def is_snapshot(folder: Path) -> bool:
    """Whether a folder holds what a run has learnt up to some update, and not a whole model."""
    return (folder / "snapshot.json").is_file()


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: unknown device.{did_you_mean(name, ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch sees no GPU here. Use device=cpu, or install a CUDA build of torch.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = local_rank()
    return torch.device("cuda", rank) if rank else torch.device("cuda")  # each process of a run has a device of its own


def load(
    family: str | None, source: str, revision: str | None = None, variant: str | None = None, vae: str | None = None,
    config: str | None = None, options: Options = PLAIN,
) -> Family:  # fmt: skip
    """Load a model in float32, of a known family or of the one that it says itself; UserError where it can't be found.

    `config` is for single files only: the diffusers folder or hub id that holds their tokenizer and shapes. A snapshot
    says itself which family and base it is of.
    """
    if is_snapshot(Path(source).expanduser()):
        from dreamlab.snapshots import load_snapshot

        return load_snapshot(Path(find(source)), vae, config, options)
    from dreamlab.fused import fuse
    from dreamlab.quiet import quiet_imported_libraries

    quiet_imported_libraries()
    if any(name and not Path(find(name)).expanduser().exists() for name in (source, vae, config)):
        go_offline_if_silent()
    made = family_class(family or family_in(find(source), revision))
    garbage.resume()
    with _explained(source):
        if is_single_file(source):
            model = made.load_file(find(source), find(config) if config else None, find(vae) if vae else None, options)
        else:
            model = made.load(find(source), revision, variant, find(vae) if vae else None, options)
    fuse([*model.parts().values(), *model.encoders().values()])
    return model


def family_class(name: str) -> Any:
    """The class of a family, imported now."""
    if name not in FAMILIES:
        raise UserError(f"model.family={name}: unknown family.{did_you_mean(name, FAMILIES)}")
    module, _, made = FAMILIES[name].place.rpartition(".")
    return getattr(importlib.import_module(module), made)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """UserError for whatever libraries raise at a model's files, which are anybody's; too little memory stays that."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"Could not load the model {source!r}: {reason}. Give one that is whole.") from error
