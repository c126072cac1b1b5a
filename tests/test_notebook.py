"""The notebook for Colab runs from top to bottom, on pocket, with small numbers in its cell of settings."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "dreamlab_colab.ipynb"
SMALL = (
    "logger=none batch_size=1 num_prior_images=2 prior.steps=1 sampling.steps=1 eval.steps=1 eval.far=1"
    " eval.class_images=3 eval.unrelated=1 eval.moments=1 eval.probes=1 device=cpu"
)
SETTINGS = f"""
INSTALL_FROM, MODEL, PHOTOS, CLASS_WORD, TOKEN = "", "pocket", "photos/none", "cat", "zwx"
CANDIDATES, SETTINGS, ONE_RUN, SWEEP, DRAW_STEPS = 1, {SMALL!r}, "steps=1 eval=none", "steps=1,2", 1
"""


@pytest.mark.slow
def test_it_runs_and_shows_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "no outputs are stored"
    (settings,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    known = {name.strip() for line in SETTINGS.splitlines() for name in line.split(" = ")[0].split(",") if name}
    assert known == {line.split(" = ")[0] for line in settings.source.splitlines() if line[0] != "#"}
    settings.source = SETTINGS
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pictures = [kind for cell in code for output in cell.outputs for kind in output.get("data", {}) if "image" in kind]
    wanted = ["image/png", "image/svg+xml", *["image/png"] * 3]
    assert pictures == wanted, "of the run, the chart, two of the sweep, those drawn"
    assert (tmp_path / "outputs/exported-pocket/unet/diffusion_pytorch_model.safetensors").is_file()
    assert (tmp_path / "outputs/sweeps/notebook/comparison.html").is_file()
