"""What a search over settings looks at: a run's likeness to its subject, and what it did to the class.

Called by train.py, which hands them to the Optuna sweeper of conf/sweep/optuna.yaml in this order.
"""

from typing import Any

from dreamlab.errors import UserError
from dreamlab.runs import RunDirectory

FIDELITY, DRIFT = "eval/dino_near", "eval/drift_class"  # the first to be high, the second low


def are_wanted(hydra_settings: Any) -> bool:
    """Whether the sweep that this member belongs to goes by results; `hydra_settings`: HydraConfig.get()."""
    return "optuna" in str(hydra_settings.sweeper.get("_target_", ""))


def objectives(run: RunDirectory) -> tuple[float, float]:
    """Fidelity and drift at a run's last evaluation; UserError where they were not measured."""
    rows = [row for row in run.evaluations.rows() if row["update"] > 0]
    if not rows:
        raise UserError(f"{run.path} was not evaluated, and a search needs numbers. Set eval=quick or eval=standard.")
    missing = [key for key in (FIDELITY, DRIFT) if key not in rows[-1]]
    if missing:
        raise UserError(
            f"{run.path} has no {' and no '.join(missing)}, which a search needs. Set eval=standard, or eval.near=1"
            " eval.class_images=4."
        )
    return float(rows[-1][FIDELITY]), float(rows[-1][DRIFT])
