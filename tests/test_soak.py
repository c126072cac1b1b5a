"""What one training of a sweep holds is let go of before the next one begins."""

import gc
import weakref
from typing import Any

import bitsandbytes  # noqa: F401  whose first import logs an error, which pytest keeps with all that was under way
import pytest
from conftest import Settings
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from dreamlab import assemble, garbage
from dreamlab.errors import AlreadyTold, UserError, explained
from dreamlab.module import DreamBooth
from dreamlab.sweeps import Sweep
from dreamlab.train import train


def test_a_training_before_is_gone_when_the_next_one_loads(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    load, make, made, alive = assemble.base_model, assemble.module, list[weakref.ref[DreamBooth]](), []

    def load_and_count(*given: Any) -> Any:
        alive.append(sum(one() is not None for one in made))
        return load(*given)

    def make_and_note(*given: Any) -> DreamBooth:
        module = make(*given)
        made.append(weakref.ref(module))
        return module

    monkeypatch.setattr(assemble, "base_model", load_and_count)
    monkeypatch.setattr(assemble, "module", make_and_note)
    gc.collect()
    thresholds = gc.get_threshold()
    garbage.put_off()  # as a command does
    try:
        for seed in (1, 2):
            gc.disable()  # Python's own time for circles may be any
            train(settings(f"seed={seed}", "steps=1", "adapter=lora", "prompts=[]", "prior=none"))
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    assert alive == [0, 0] and len(made) == 2


def test_a_failed_member_of_a_sweep_keeps_nothing_alive() -> None:
    class Model:
        pass

    def fail() -> None:
        model = Model()
        seen.append(weakref.ref(model))
        raise UserError("the loss is nan")

    seen: list[weakref.ref[Model]] = []
    with pytest.raises(AlreadyTold) as kept, explained(in_sweep=True):
        fail()
    gc.collect()
    assert kept.value is not None and seen[0]() is None


def test_hydra_keeps_the_result_of_a_job_and_not_its_settings() -> None:
    job = JobReturn(cfg=OmegaConf.create({"lr": 1}), hydra_cfg=OmegaConf.create({}))  # type: ignore[arg-type]
    job.return_value, job.status = 0.5, JobStatus.COMPLETED
    Sweep().on_job_end(OmegaConf.create(), job_return=job)
    assert (job.cfg, job.hydra_cfg, job.return_value) == (None, None, 0.5)
