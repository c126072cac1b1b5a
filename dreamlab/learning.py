"""What learns of a model: from the settings to trained parts, and to what is written of them.

assemble.py's other half: adapters.py, inversion.py and pivotal.py receive values from here. Called by train.py,
assemble.py and following.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dreamlab import inversion, pivotal, precision
from dreamlab.adapters import adapt, add, add_rows
from dreamlab.low_rank import LowRank, adapter_weights
from dreamlab.models import Family
from dreamlab.runs import RunDirectory
from dreamlab.schema import Train
from dreamlab.snapshots import origin_of, write_snapshot
from dreamlab.subject import Subject


def add_words(config: Train, subject: Subject, model: Family) -> None:
    """Make each subject's token a new word of an untouched model, where it is to learn as one."""
    chosen = config.adapter
    if chosen.kind in pivotal.KINDS:
        for concept in subject.concepts:
            rows = inversion.beginning(model, chosen.initializer or concept.class_word, chosen.vectors or 1)
            inversion.add_token(model, concept.token, rows)


def low_rank(config: Train) -> LowRank | None:
    """What is put beside the model's weights, or None where they learn themselves or not at all."""
    chosen, kind = config.adapter, pivotal.kind_of_weights(config.adapter)
    if chosen.rank is None or chosen.alpha is None or chosen.dropout is None or chosen.targets is None:
        return None
    return LowRank(
        str(kind), chosen.rank, chosen.alpha, chosen.dropout, tuple(chosen.targets), tuple(chosen.train)
    )  # fmt: skip


def trained_parts(config: Train, model: Family) -> nn.ModuleDict:
    """The parts that learn, by name: every other weight is frozen."""
    adapter, recompute, parts = low_rank(config), config.model.gradient_checkpointing, model.parts()
    trained = None
    if adapter:
        trained = add(parts, adapter, recompute, config.seed)
    elif pivotal.kind_of_weights(config.adapter) is not None:
        trained = adapt(parts, config.adapter.train, recompute, precision.weight_dtype(config.precision))
    if trained is not None and config.adapter.kind not in pivotal.KINDS:
        return trained
    return add_rows(parts, inversion.tables(model), trained, recompute)


def inversion_of(config: Train, trained: nn.ModuleDict) -> pivotal.Inversion | None:
    """How rows of new words learn beside other weights; None where there are none."""
    chosen = config.adapter
    if chosen.kind not in pivotal.KINDS:
        return None
    return pivotal.Inversion(
        trained, chosen.embedding_lr, chosen.switch_step, bool(chosen.go_on), bool(chosen.keep_norm)
    )  # fmt: skip


def may_skip_weights(config: Train) -> bool:
    """Whether there are updates in which some weights don't learn."""
    return config.text_encoder_stop is not None or config.adapter.kind == "pivotal"


def origin(config: Train, subject: Subject) -> dict[str, Any]:
    """What a snapshot says of itself besides its update."""
    chosen, words = config.adapter, {}
    if chosen.kind in pivotal.KINDS:
        words = {"tokens": {concept.token: chosen.vectors for concept in subject.concepts}}
    origin = origin_of(config.model, config.objective.zero_terminal_snr, low_rank(config))
    return {"instance_prompt": subject.instance_prompt, **origin, **words}


def save_model(config: Train, subject: Subject, run: RunDirectory, model: Family, update: int) -> None:
    """What the run leaves in model/: the tuned pipeline or, where no whole weights learnt, what did and its base."""
    if pivotal.kind_of_weights(config.adapter) == pivotal.FULL:
        with inversion.merged(model):
            run.save_model(model)
        return
    about = {"update": update, **origin(config, subject)}
    write_snapshot(run.model, _learnt(model), about, dtype="fp32")


def _learnt(model: Family) -> Mapping[str, Tensor]:
    """Weights of adapters and rows of new words, named as a snapshot takes them."""
    adapters = {
        f"{part}.{name}": weight
        for part, network in model.parts().items() for name, weight in adapter_weights(network).items()
    }  # fmt: skip
    return {**adapters, **{f"{part}.{inversion.ROWS}": table.rows for part, table in inversion.tables(model).items()}}
